"""Images made smaller on their way in, by img2dataset's `Resizer`; not by default, for it encodes them anew.

Its own check of the area is after decoding (a PNG of 109 kB took 2.1 GB): here the header is looked at first. One
thread at a time: it redirects the process's stdout while it works.
"""

from io import BytesIO
from typing import Any

from capfilt.download.fetcher import load_img2dataset
from capfilt.media.images import ImageError, header_area

QUALITY = 95


class Resize:
    """`mode`: keep_ratio (shorter side), keep_ratio_largest (longer side), center_crop, border; `size` in pixels.

    Images that are smaller are not enlarged.
    """

    def __init__(self, mode: str, size: int) -> None:
        self._resizer: Any = load_img2dataset("resizer").Resizer(
            size, mode, resize_only_if_bigger=True, encode_quality=QUALITY
        )

    def __call__(self, data: bytes, max_pixels: int) -> bytes:
        """A JPEG file. Raises ImageError as `images.examine` does."""
        header_area(data, max_pixels)
        image, *_, error = self._resizer(BytesIO(data))
        if error is not None or image is None:
            raise ImageError("image_unreadable", f"image cannot be resized ({error or 'no image came out'})")
        return bytes(image)
