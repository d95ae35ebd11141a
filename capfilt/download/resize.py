"""Shrink downloaded images with img2dataset's `Resizer`. Off by default, because it re-encodes every image as JPEG.

The Resizer checks an image's area only after decoding (a PNG of 109 kB took 2.1 GB), so the header is checked here
first. Call it from one thread at a time: it redirects the process's stdout while it works.
"""

from io import BytesIO
from typing import Any

from capfilt.download.img2dataset import load_img2dataset
from capfilt.media.images import ImageError, header_area

QUALITY = 95


class Resize:
    """Resize to `size` pixels; smaller images keep their size.

    Args:
        mode: keep_ratio (shorter side), keep_ratio_largest (longer side), center_crop or border.
        size: pixels.

    Raises:
        ConfigError: img2dataset is not installed.
    """

    def __init__(self, mode: str, size: int) -> None:
        module = load_img2dataset("resizer")
        self._cv2: Any = module.cv2
        self._resizer: Any = module.Resizer(size, mode, resize_only_if_bigger=True, encode_quality=QUALITY)

    def __call__(self, data: bytes, max_pixels: int) -> bytes:
        """Return a JPEG file. Raises ImageError as `images.examine` does."""
        header_area(data, max_pixels)
        threads = self._cv2.getNumThreads()
        try:
            image, *_, error = self._resizer(BytesIO(data))
        finally:
            self._cv2.setNumThreads(threads)  # the Resizer sets it to 1
        if error is not None or image is None:
            raise ImageError("image_unreadable", f"image cannot be resized ({error or 'no image came out'})")
        return bytes(image)
