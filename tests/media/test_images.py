"""Decoding a stranger's bytes: formats, orientation, transparency, bombs, damage, memory."""

import contextlib
import hashlib
import struct
import subprocess
import sys
import zlib
from collections import Counter
from functools import cache
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capfilt.errors import DataError
from capfilt.media.images import ImageError, decode_image, examine
from tests.pictures import encode, photo


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_formats(kind: str) -> None:
    image = decode_image(encode(Image.new("RGB", (9, 7), (200, 30, 60)), kind))
    assert (image.mode, image.size) == ("RGB", (9, 7))
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 60)).max() < 12


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    for data in (encode(clear), encode(clear, "WEBP"), encode(clear, "GIF"), encode(clear.convert("LA"))):
        assert np.asarray(decode_image(data)).min() == 255
    half = np.asarray(decode_image(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))))
    assert abs(int(half[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert np.asarray(decode_image(encode(palette)))[0, 0].tolist() == [10, 20, 30]
    assert np.asarray(decode_image(encode(palette, transparency=1))).min() == 255


def test_sixteen_bit_grey_keeps_its_levels() -> None:
    grey = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert np.asarray(decode_image(encode(grey))).flat[0] == 0x80


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored, exif = photo(40, 24), Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encode(stored, "PNG", exif=exif))
    assert upright.size == ((24, 40) if orientation >= 5 else (40, 24))
    corner = {1: (0, 0), 2: (39, 0), 3: (39, 23), 4: (0, 23), 5: (0, 0), 6: (0, 23), 7: (39, 23), 8: (39, 0)}
    assert upright.getpixel((0, 0)) == stored.getpixel(corner[orientation])


def test_bad_bytes_are_data_errors() -> None:
    good = encode(photo(200, 200), "JPEG")
    for data in (b"", b"GIF89a", good[: len(good) // 2], encode(photo(), "BMP"), encode(photo(), "TIFF")):
        with pytest.raises(DataError, match="image cannot be decoded"):
            decode_image(data)
    with pytest.raises(DataError, match="200 x 200 pixels is above the cap of 30000"):
        decode_image(good, max_pixels=30_000)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), st.integers(0, 2**32))
def test_damaged_images_decode_or_are_data_errors(kind: str, seed: int) -> None:
    rng, data = Random(seed), bytearray(encode(photo(), kind))
    for _ in range(4):
        data[rng.randrange(len(data))] = rng.randrange(256)
    with contextlib.suppress(DataError):
        assert decode_image(bytes(data), max_pixels=1_000_000).mode == "RGB"


def png(width: int, height: int, depth: int = 8, colour: int = 2, body: bytes = bytes(999), text: bytes = b"") -> bytes:
    """A PNG from its parts, whatever its header claims."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *([(b"tEXt", text)] if text else []), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bomb(kind: str, side: int = 60_000) -> bytes:
    """A header that claims side x side pixels (WEBP holds at most 16,383 a side)."""
    if kind == "PNG":
        return png(side, side)
    if kind == "GIF":
        screen, frame = struct.pack("<HHBBB", side, side, 0, 0, 0), struct.pack("<HHHHB", 0, 0, side, side, 0)
        return b"GIF89a" + screen + b"," + frame + b"\x08\x00;"
    data = bytearray(encode(photo(), "WEBP", lossless=True))
    side = min(side, 16_383)
    data[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_bombs_are_told_by_their_header(kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        examine(bomb(kind))
    assert caught.value.reason == "bomb"


@cache
def odd_images() -> list[bytes]:
    """Sound images of unusual kinds: CMYK, 16-bit, palette, animated, rotated, two pictures, a long text chunk."""
    image, exif = photo(), Image.Exif()
    exif[0x0112] = 6
    frames = [photo(seed=i) for i in range(3)]
    return [
        encode(image.convert("CMYK"), "JPEG"),
        encode(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27)),
        encode(image.convert("P")),
        encode(image.convert("1")),
        encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        encode(image, "JPEG", exif=exif),
        encode(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        png(60, 40, body=bytes(40 * 181), text=b"Comment\0" + b"x" * 900_000),
    ]


def test_odd_images_are_taken() -> None:
    found = [examine(data) for data in odd_images()]
    assert [facts.format for facts in found] == ["JPEG", "PNG", "PNG", "PNG", "GIF", "WEBP", "JPEG", "JPEG", "PNG"]
    assert {(facts.width, facts.height) for facts in found} == {(60, 40), (40, 60)}
    assert (found[6].width, found[6].height) == (40, 60)
    assert found[4].phash == examine(encode(photo(seed=0), "GIF")).phash


def test_facts_are_of_the_pixels() -> None:
    image = photo(150, 130)
    facts, other = examine(encode(image)), examine(encode(image, "WEBP", lossless=True))
    assert (facts.format, other.format) == ("PNG", "WEBP")
    assert (facts.pixels_sha256, facts.phash) == (other.pixels_sha256, other.phash)
    changed = image.copy()
    changed.putpixel((149, 129), (1, 2, 3))
    assert examine(encode(changed)).pixels_sha256 != facts.pixels_sha256
    assert examine(encode(image.crop((0, 0, 150, 129)))).pixels_sha256 != facts.pixels_sha256
    assert hashlib.sha256(b"150 130 " + image.tobytes()).hexdigest() == facts.pixels_sha256


def malformed(seed: int) -> bytes:
    """One of a thousand files that crawlers bring home."""
    rng = Random(seed)
    kind = rng.choice(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO"])
    data = rng.choice(odd_images()) if rng.random() < 0.3 else encode(photo(), kind)
    how = rng.randrange(6)
    if how == 0:
        return data[: rng.randrange(len(data))]
    if how == 1:
        return rng.randbytes(rng.randrange(400))
    if how == 2:
        return data[:12] + rng.randbytes(300)
    if how == 3:
        return bomb(rng.choice(["PNG", "GIF", "WEBP"]))
    if how == 4:
        return rng.choice([png(0, 0), png(0, 7), b"", b"<html>404</html>", b"\xff\xd8\xff\xd9", data + data])
    flipped = bytearray(data)
    for _ in range(rng.choice([1, 4, 40])):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def fate(data: bytes) -> tuple[str, str]:
    """Reason and what it says; ok and the format of an image that is taken."""
    try:
        facts = examine(data, max_pixels=1_000_000)
    except ImageError as error:
        return error.reason, str(error)
    return "ok", facts.format


def test_a_thousand_malformed_images_are_taken_or_refused_with_a_reason() -> None:
    reasons: Counter[str] = Counter()
    for seed in range(1000):
        reason, told = fate(malformed(seed))
        assert " at 0x" not in told
        reasons[reason] += 1
    assert set(reasons) == {"ok", "bomb", "image_unreadable"}
    assert min(reasons.values()) > 20


WATCH = """
import resource, sys, warnings
warnings.simplefilter("default")
from PIL import Image
from capfilt.media.images import ImageError, examine
Image.MAX_IMAGE_PIXELS = 2000
print(examine(bytes.fromhex(sys.argv[1])).format)
Image.MAX_IMAGE_PIXELS = 10**9
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    examine(data)
except ImageError as error:
    print(error.reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_sound_png_of_900_megapixels_takes_no_memory_and_pillows_warnings_do_not_leak() -> None:
    data = png(30_000, 30_000, depth=1, colour=0, body=bytes((1 + 30_000 // 8) * 30_000))
    assert len(data) < 200_000
    command = [sys.executable, "-c", WATCH, encode(photo()).hex()]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    warned, found, grown = done.stdout.decode().split()
    assert (warned, found) == ("PNG", "bomb")
    assert int(grown) < 200
    assert b"Warning" not in done.stderr
