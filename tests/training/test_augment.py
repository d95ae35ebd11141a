import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from capfilt.media.images import decode_image
from capfilt.training.augment import _OPERATIONS, CLIP_MEAN, CLIP_STD, Augment, crop_box
from tests.pictures import encode, photo


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


def test_draft_decodes_smaller_but_never_below_the_side() -> None:
    augment, data = Augment(size=32), encode(photo(1600, 1200), "JPEG")
    side = augment.draft_side
    assert side == math.ceil(32 / math.sqrt(0.2 * 0.75)) + 1
    image = decode_image(data, draft_side=side)
    assert side <= min(image.size) < 2 * side
    assert decode_image(data).size == (1600, 1200)
    assert Augment.evaluation(32).draft_side is None


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="crop"):
        Augment(crop=(0.5, 1))
