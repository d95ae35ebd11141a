"""Convert images to RGB. In a file of its own so that code that only checks files does not load torch (190 MB)."""

import numpy as np
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per RGB channel in [0, 1]: CLIP's normalisation, which BLIP shares."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: transparency over white, as transformers does since 5.x; 16-bit grey by its high byte.

    (Pillow's own conversion shows the hidden colours, often black, and clips 16-bit grey to white.)
    """
    if image.mode.startswith("I"):
        high = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
