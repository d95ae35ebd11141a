"""BLIP on a GPU that is not there: no tensor is left on the CPU, and what it computes is what the CPU computes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from capfilt.config.decoding import Decoding
from capfilt.models.blip import Blip
from capfilt.models.blip.image import ImageProcessor
from tests.models.fake_cuda import CUDA, FakeCuda, move, value
from tests.pictures import photo

TEXTS = [["a red disc", "a picture of a bar"], [], ["a blue square on a plain wall"]]
UIDS = ["u", "v", "w"]


@pytest.fixture
def here(tiny_med: Any) -> Blip:
    """On the CPU, with random weights."""
    return Blip(*tiny_med(), ImageProcessor(32))


def there(here: Blip, mode: FakeCuda) -> Blip:
    """The same on the fake GPU."""
    with _disable_current_modes():
        gpu = copy.deepcopy(here)
    move(gpu.med, mode)
    gpu.device = CUDA
    return gpu


def prepared(blip: Blip) -> list[Any]:
    return [blip.prepare(photo(seed=i), b"") for i in range(3)]


def close(found: Tensor, want: Tensor) -> None:
    assert found.device == CUDA
    torch.testing.assert_close(value(found).clone(), want.clone(), atol=1e-4, rtol=1e-4)


def test_encoding_embedding_and_judging(here: Blip, fake_cuda: FakeCuda) -> None:
    gpu = there(here, fake_cuda)
    with _disable_current_modes():
        inputs = prepared(here)
        states = here.encode(inputs)
        wanted = here.match(states, TEXTS)
        embedded, read = here.embed(states), here.embed_texts(TEXTS[0])
    seen = gpu.encode(inputs)
    close(seen, states)
    close(gpu.embed(seen), embedded)
    close(gpu.embed_texts(TEXTS[0]), read)
    for found, want in zip(gpu.match(seen, TEXTS), wanted, strict=True):
        for one, other in zip(found, want, strict=True):
            assert one.itc == pytest.approx(other.itc, abs=1e-4)
            assert one.itm == pytest.approx(other.itm, abs=1e-4)


@pytest.mark.parametrize("method", ["greedy", "nucleus", "beam"])
def test_captioning(method: Any, here: Blip, fake_cuda: FakeCuda) -> None:
    """Greedy and nucleus by the decoder of fixed shapes, beam search by the cached one."""
    gpu = there(here, fake_cuda)
    gpu.decoding = here.decoding = Decoding(method=method, max_length=8, min_length=7)
    with _disable_current_modes():
        states = here.encode(prepared(here))
        wanted = here.captions(states, UIDS, range(2))
    found = gpu.captions(fake_cuda.fake(states), UIDS, range(2))
    assert [[one.text for one in row] for row in found] == [[one.text for one in row] for row in wanted]
    assert found[0][0].logprob == pytest.approx(wanted[0][0].logprob, abs=1e-3)
