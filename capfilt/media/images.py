"""Decode untrusted image files upright to RGB, or refuse them with a reason; compute hashes that find duplicates."""

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import imagehash
import numpy as np
from PIL import Image, UnidentifiedImageError

from capfilt.errors import DataError
from capfilt.media.pillow import decoding_one
from capfilt.media.rgb import to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PIXELS = 64_000_000
"""Largest area by the header; a larger image is refused before decoding. 64 MP are 192 MB of RGB."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_STRIP = 2**21
"""Bytes hashed at once, to avoid a second copy of a large image."""
_HASHED = 32
"""pHash input side in pixels. Images are first box-reduced to 3x this: 8x faster for nearly the same hash."""
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class ImageError(DataError):
    """Bytes that are not an image capfilt accepts; `reason` is the value for a row's `reason` column."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Facts:
    """Properties of a decoded image."""

    width: int
    """Pixels, upright."""
    height: int
    format: str
    """One of FORMATS."""
    pixels_sha256: str
    """See `pixels_sha256`."""
    phash: int
    """See `phash`."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, draft_side: int | None = None) -> Image.Image:
    """Decode JPEG, PNG, WEBP or GIF (first frame) bytes to an upright RGB image, transparency over white.

    Args:
        data: the file.
        max_pixels: largest width * height by the header. Pillow itself refuses more than 178,956,970.
        draft_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 while its shorter side stays at least this long; pixels.

    Raises:
        ImageError: `bomb` if the header states more than `max_pixels`; `image_unreadable` if the bytes have another
            format, are broken or truncated.
    """
    with _opened(data, max_pixels) as image:
        if draft_side is not None:
            _draft(image, draft_side)
        image.load()
        return _upright(image, to_rgb(image))


def examine(data: bytes, max_pixels: int = MAX_PIXELS) -> Facts:
    """Decode the whole image and return its properties. Raises ImageError as `decode_image` does."""
    with _opened(data, max_pixels) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)  # JPEG with a second picture at its end
        image.load()
        upright = _upright(image, to_rgb(image))
    return Facts(upright.width, upright.height, kind, pixels_sha256(upright), phash(upright))


def header_area(data: bytes, max_pixels: int = MAX_PIXELS) -> int:
    """Return width * height by the header, without decoding. Raises ImageError: another format, or too many pixels."""
    with _opened(data, max_pixels) as image:
        return int(image.width * image.height)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image and read its header; turn any error in the block into an ImageError."""
    try:
        with decoding_one(), Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                found = f"image of {image.width} x {image.height} pixels is above the cap of {max_pixels}"
                raise ImageError("bomb", found)
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("bomb", f"image is above Pillow's own cap ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError("image_unreadable", "image cannot be decoded (no JPEG, PNG, WEBP or GIF)") from error
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on hostile bytes
        message = _ADDRESS.sub("", f"{type(error).__name__}: {error}")
        raise ImageError("image_unreadable", f"image cannot be decoded ({message})") from error


def _draft(image: Image.Image, side: int) -> None:
    scale = side / min(image.size)
    if scale < 1:
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))


def _upright(source: Image.Image, rgb: Image.Image) -> Image.Image:
    try:
        orientation = source.getexif().get(0x0112, 1)
    except Exception:  # an EXIF block that cannot be parsed does not affect the pixels
        return rgb
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


def pixels_sha256(image: Image.Image) -> str:
    """Sha256 over size and RGB pixels, 64 hex digits: equal for the same image in two lossless files."""
    digest = hashlib.sha256(b"%d %d " % image.size)
    rows = max(_STRIP // (3 * image.width), 1)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))) if rows < image.height else image
        digest.update(strip.tobytes())
    return digest.hexdigest()


def phash(image: Image.Image) -> int:
    """64-bit perceptual hash (DCT of the 32 x 32 grey image against its median), first bit highest."""
    small = image.reduce(max(min(image.size) // (3 * _HASHED), 1))
    grey = small.convert("L").resize((_HASHED, _HASHED), Image.Resampling.LANCZOS)
    bits = np.asarray(imagehash.phash(grey).hash, dtype=bool).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
