import contextlib
import math
from io import BytesIO
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from capfilt.errors import DataError
from capfilt.images import decode_image
from capfilt.training.augment import _OPERATIONS, CLIP_MEAN, CLIP_STD, Augment, crop_box


def photo(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(0, 2**32))
def test_shape_range_and_determinism(width: int, height: int, size: int, seed: int) -> None:
    augment, image = Augment(size=size), photo(width, height)
    pixels = augment(image, Random(seed))
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    values = pixels * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    assert values.min() >= -1e-5
    assert values.max() <= 1 + 1e-5
    assert torch.equal(pixels, augment(image, Random(seed)))


def test_another_seed_gives_other_pixels_and_the_global_generators_are_untouched() -> None:
    augment, image = Augment(size=32), photo()
    state = torch.get_rng_state()
    assert not torch.equal(augment(image, Random(1)), augment(image, Random(2)))
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_is_the_bicubic_squash() -> None:
    image = photo()
    squashed = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).astype(np.float64) / 255
    expected = ((squashed - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)
    assert np.abs(Augment.evaluation(32)(image, Random(0)).numpy() - expected).max() < 1e-5


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32))
def test_crops_lie_inside_and_keep_area_and_aspect(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = crop_box(width, height, (0.2, 1.0), Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) >= 100 and max(width, height) <= 1.3 * min(width, height):
        w, h = right - left, bottom - top
        assert 0.19 <= w * h / (width * height) <= 1
        assert 0.73 <= w / h <= 1.37


def test_flip_alone_mirrors() -> None:
    image = photo()
    straight = Augment(size=32, crop_scale=None, flip=0, randaugment_n=0)(image, Random(0))
    mirrored = Augment(size=32, crop_scale=None, flip=1, randaugment_n=0)(image, Random(0))
    assert torch.equal(mirrored, straight.flip(2))


def test_ten_operations_and_brightness_and_sharpness_are_idle_at_the_papers_level() -> None:
    image = photo(32, 32)
    changed = [operation(image, 5, Random(0)).tobytes() != image.tobytes() for operation in _OPERATIONS]
    assert len(changed) == 10
    assert not any(changed[i] for i in (0, 2, 3))
    assert all(changed[i] for i in (4, 5, 6, 7, 8, 9))
    assert all(_OPERATIONS[i](image, 9, Random(0)).tobytes() != image.tobytes() for i in (2, 3))


def test_translation_moves_by_pixels_and_fills_grey() -> None:
    moved = np.asarray(_OPERATIONS[7](Image.new("RGB", (32, 32)), 5, Random(0)))
    columns = (moved == 128).all(axis=(0, 2))
    assert columns.sum() == 5
    assert columns[:5].all() or columns[-5:].all()


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


def test_draft_decodes_smaller_but_never_below_the_side() -> None:
    augment, data = Augment(size=32), encode(photo(1600, 1200), "JPEG")
    side = augment.draft_side
    assert side == math.ceil(32 / math.sqrt(0.2 * 0.75)) + 1
    image = decode_image(data, draft_side=side)
    assert side <= min(image.size) < 2 * side
    assert decode_image(data).size == (1600, 1200)
    assert Augment.evaluation(32).draft_side is None


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


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="crop"):
        Augment(crop=(0.5, 1))
