"""Cross-attention of inference: absorbed, with keys, and as in training are one function of rows and image."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from capfilt.models.blip import cross
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.cross import ImageKeys, KeyValue, PackedStates, SdpaStates, image_keys
from capfilt.models.blip.ragged import first_tokens, padded_attention


@pytest.fixture(params=["wide-vision", "wide-text", "one-head"])
def blip(request: Any, folders: Any) -> Blip:
    return Blip.load(folders("filter", request.param))


def states(blip: Blip, images: int) -> Tensor:
    vision = blip.config.vision
    generator = torch.Generator().manual_seed(2)
    return torch.randn(images, vision.grid**2 + 1, vision.width, generator=generator)


def rows(blip: Blip, counts: list[int]) -> Tensor:
    return torch.randn(sum(counts), blip.config.text.width, generator=torch.Generator().manual_seed(3))


def all_kinds(blip: Blip, images: Tensor) -> dict[str, ImageKeys]:
    keys = {"packed states": PackedStates.build(images), "sdpa states": SdpaStates(images)}
    return {**keys, "key value": KeyValue(blip.med.text.cross_kv(images))}


@torch.inference_mode()
def test_absorbed_equals_key_value_equals_training(blip: Blip) -> None:
    images, counts = states(blip, 3), [1, 7, 4]
    x = rows(blip, counts)
    for i, layer in enumerate(blip.med.text.layers):
        attention: Any = layer.cross_attention.attention
        parts = zip(x.split(counts), images, strict=True)
        plain = torch.cat([attention.context(part[None], attention.project_kv(one[None]))[0] for part, one in parts])
        for kind, keys in all_kinds(blip, images).items():
            torch.testing.assert_close(keys.attend(i, attention, x, counts), plain, atol=2e-6, rtol=1e-5, msg=kind)
        assert plain.std() > 0.1


@pytest.mark.usefixtures("one_thread")
@torch.inference_mode()
def test_images_and_rows_beside_change_no_bit(blip: Blip) -> None:
    """Rows per image 1 .. 9, alone and between others; `select` leaves images out."""
    attention: Any = blip.med.text.layers[0].cross_attention.attention
    images, counts = states(blip, 9), list(range(1, 10))
    x = rows(blip, counts)
    for kind, keys in all_kinds(blip, images).items():
        whole = keys.attend(0, attention, x, counts).split(counts)
        for i, part in enumerate(x.split(counts)):
            assert torch.equal(keys.select([i]).attend(0, attention, part, [i + 1]), whole[i]), (kind, i)
        some = keys.select([7, 2]).attend(0, attention, torch.cat([x.split(counts)[7], x.split(counts)[2][:1]]), [8, 1])
        assert torch.equal(some, torch.cat([whole[7], whole[2][:1]])), kind


def test_which_kind(folders: Any) -> None:
    """Absorbed for few rows of plain fp32 layers in inference on a CPU; a layer of another class has keys."""
    blip = Blip.load(folders("filter"))
    images = states(blip, 2)
    assert isinstance(image_keys(blip.med.text, images, 1), KeyValue), "not in inference mode"
    with torch.inference_mode():
        assert isinstance(image_keys(blip.med.text, images, cross.MAX_ABSORBED_ROWS), PackedStates)
        assert isinstance(image_keys(blip.med.text, images, cross.MAX_ABSORBED_ROWS, decoding=True), SdpaStates)
        assert isinstance(image_keys(blip.med.text, images, cross.MAX_ABSORBED_ROWS + 1, decoding=True), KeyValue)
        swapped = copy.deepcopy(blip.med.text)
        attention: Any = swapped.layers[1].cross_attention.attention
        attention.value = nn.Sequential(attention.value)
        assert isinstance(image_keys(swapped, images, 1), KeyValue)
        assert isinstance(image_keys(copy.deepcopy(blip.med.text).bfloat16(), images.bfloat16(), 1), KeyValue)


@pytest.mark.parametrize("few_rows", [0, 10**6])
def test_ragged_is_padded(few_rows: int, blip: Blip, texts: list[str], monkeypatch: Any) -> None:
    """Texts end to end against `TextTransformer.run`, the form that training uses, with and without images."""
    monkeypatch.setattr(cross, "MAX_ABSORBED_ROWS", few_rows)
    text, images = blip.med.text, states(blip, 2)
    ids, mask = blip.tokenizer.batch(texts)
    with torch.inference_mode():
        for kv, keys, counts in (
            (None, None, []),
            (text.cross_kv(images[[0, 0, 0, 1]]), image_keys(text, images, 30), [3, 1]),
        ):
            plain = text.run("encoder", ids, mask, kv)[:, 0]
            ours = first_tokens(text, blip.tokenizer.ids(texts), keys, counts)
            torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_padded_attention_is_that_of_each_text() -> None:
    """What other devices do in one call."""
    lengths = [3, 7, 1]
    q, k, v = torch.randn(3, 11, 2, 8, generator=torch.Generator().manual_seed(0))
    each = [
        torch.nn.functional.scaled_dot_product_attention(*(part.transpose(0, 1) for part in parts)).transpose(0, 1)
        for parts in zip(*(one.split(lengths) for one in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(padded_attention(q, k, v, lengths), torch.cat(each).flatten(1))
