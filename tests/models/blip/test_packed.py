"""Packed products: those of `F.linear`, the same bits in any batch, and never of weights that have changed."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from capfilt.models.blip.packed import FusedMLP, Linear, add_to, can_pack, gelu
from capfilt.models.torch_compat import HAS_PACKED_LINEAR


def layer(inputs: int = 48, outputs: int = 72, many_rows: bool = False) -> Linear:
    torch.manual_seed(0)
    return Linear(inputs, outputs, many_rows)


@pytest.mark.parametrize("shape", [(48,), (1, 48), (2, 48), (5, 3, 48), (0, 48), (1, 1, 48)])
def test_it_is_linear(shape: tuple[int, ...]) -> None:
    one, x = layer(), torch.randn(shape)
    with torch.inference_mode():
        got = one(x)
        torch.testing.assert_close(got, F.linear(x, one.weight, one.bias), atol=1e-6, rtol=1e-6)
        assert got.shape == (*shape[:-1], 72)


@pytest.mark.skipif(not HAS_PACKED_LINEAR, reason="torch without oneDNN")
@pytest.mark.parametrize(("inputs", "outputs"), [(768, 768), (768, 2), (48, 72), (17, 33)])
def test_a_row_has_the_same_bits_in_any_batch(inputs: int, outputs: int) -> None:
    one, x = layer(inputs, outputs), torch.randn(600, inputs)
    with torch.inference_mode():
        whole = one(x)
        for rows in (*range(1, 18), 31, 64, 65, 577):
            for start in (0, 3):
                assert torch.equal(one(x[start : start + rows]), whole[start : start + rows]), rows


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("inputs", "outputs"), [(768, 768), (768, 3072), (48, 72)])
def test_a_state_has_the_same_bits_beside_any_images(inputs: int, outputs: int) -> None:
    """Layers of the vision tower, whose rows come by the image: 5 of a grid of 2, 577 of one of 24."""
    one = layer(inputs, outputs, many_rows=True)
    x, rest = torch.randn(4 * 577, inputs), torch.randn(4 * 577, outputs)
    with torch.inference_mode():
        whole, added, bent = one(x), add_to(rest, one, x), one.gelu(x)
        torch.testing.assert_close(whole, F.linear(x, one.weight, one.bias), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(added, rest + whole, atol=1e-5, rtol=1e-5)
        for rows in (5, 17, 65, 577, 3 * 577):
            assert torch.equal(one(x[:rows]), whole[:rows]), rows
            assert torch.equal(add_to(rest[:rows], one, x[:rows]), added[:rows]), rows
            assert torch.equal(one.gelu(x[:rows]), bent[:rows]), rows


def test_gelu_of_it_has_the_bits_of_gelu_after_it() -> None:
    one, x = layer(), torch.randn(5, 3, 48)
    with torch.inference_mode():
        assert torch.equal(gelu(one, x), F.gelu(one(x)))
        assert torch.equal(gelu(one, x[:1, 0]), F.gelu(one(x[:1, 0])))
    assert torch.equal(gelu(one, x), F.gelu(F.linear(x, one.weight, one.bias)))
    assert torch.equal(gelu(nn.Identity(), x), F.gelu(x))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("hidden", [72, FusedMLP.WIDTH, 2 * FusedMLP.WIDTH + 40])
@pytest.mark.parametrize(("many_rows", "counts"), [(False, (2, 17, 39)), (True, (5, 17, 39))])
def test_feeding_by_parts_of_the_hidden_width(hidden: int, many_rows: bool, counts: tuple[int, ...]) -> None:
    feed, up, down = FusedMLP(), layer(48, hidden, many_rows), layer(hidden, 48, many_rows)
    x, rest = torch.randn(2, 40, 48), torch.randn(2, 40, 48)
    whole = rest + down(F.gelu(up(x)))
    torch.testing.assert_close(feed(rest, up, down, x), whole)
    with torch.inference_mode():
        before, got = rest.clone(), feed(rest, up, down, x)
        torch.testing.assert_close(got, whole, atol=1e-5, rtol=1e-5)
        assert torch.equal(rest, before)
        for rows in counts:
            assert torch.equal(feed(rest[:1, :rows], up, down, x[:1, :rows]), got[:1, :rows])
        assert feed(rest, nn.Linear(48, 8), nn.Linear(8, 48), x).shape == rest.shape
    with torch.no_grad():
        down.weight.mul_(2.0)
    with torch.inference_mode():
        torch.testing.assert_close(feed(rest, up, down, x), rest + down(F.gelu(up(x))), atol=1e-5, rtol=1e-5)


def test_changed_weights_are_packed_anew() -> None:
    one, x = layer(), torch.randn(3, 48)
    with torch.inference_mode():
        before = one(x)
    with torch.no_grad():
        one.weight.mul_(2.0)
    with torch.inference_mode():
        torch.testing.assert_close(one(x) - one.bias, 2 * (before - one.bias))
        for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert torch.equal(other(x), one(x))
    one.load_state_dict(layer().state_dict(), assign=True)
    with torch.inference_mode():
        assert torch.equal(one(x), before)


def test_training_is_torch_s_own() -> None:
    one, x = layer(), torch.randn(3, 48)
    assert not can_pack(x, one.weight)
    one(x).sum().backward()
    assert one.weight.grad is not None
    assert isinstance(one, nn.Linear)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert one(x).dtype == torch.bfloat16
    with torch.inference_mode():
        assert copy.deepcopy(one).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
