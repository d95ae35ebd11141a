"""`Blip`: scores are made of its parts, towers run once, roles are declared."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from capfilt.errors import ConfigError, InputError
from capfilt.models.blip import adapter, cross
from capfilt.models.blip.adapter import Blip
from capfilt.models.protocols import Captioner, Embedder, Matcher
from capfilt.models.torch_compat import HAS_PACKED_LINEAR


@pytest.fixture
def matcher(folders: Any) -> Blip:
    return Blip.load(folders("filter"))


@pytest.fixture
def captioner(folders: Any) -> Blip:
    return Blip.load(folders("captioner"))


def count_calls(blip: Blip) -> Counter[str]:
    """Calls of the vision tower (a forward hook) and of each layer's cross-attention key map."""
    calls = Counter[str]()
    blip.med.vision.register_forward_hook(lambda *_: calls.update(["vision"]))
    for i, layer in enumerate(blip.med.text.layers):
        key = layer.cross_attention.attention.key
        key.register_forward_hook(lambda *_, i=i: calls.update([f"kv{i}"]))
    return calls


def test_score_is_its_parts(matcher: Blip, texts: list[str], pixels: Any) -> None:
    images = pixels(3, 32)
    rows = matcher.score(images, [texts[:2], [], texts[1:]])
    assert [len(row) for row in rows] == [2, 0, 3]
    states = matcher.encode_images(images)
    flat, index = [*texts[:2], *texts[1:]], torch.tensor([0, 0, 2, 2, 2])
    itc = (matcher.embed_images(states) @ matcher.embed_texts(flat).T)[index, torch.arange(5)]
    itm = matcher.itm_logits(states, flat, index).softmax(-1)[:, 1]
    matches = [match for row in rows for match in row]
    torch.testing.assert_close(torch.tensor([m.itc for m in matches]), itc)
    torch.testing.assert_close(torch.tensor([m.itm for m in matches]), itm)
    assert torch.equal(matcher.embed(images), matcher.embed_images(states).half())
    assert all(-1 <= m.itc <= 1 and 0 <= m.itm <= 1 for m in matches)


def test_score_does_not_depend_on_the_batch(matcher: Blip, texts: list[str], pixels: Any, monkeypatch: Any) -> None:
    """Padding and the bound of texts a pass change nothing but rounding."""
    images = pixels(2, 32)
    together = matcher.score(images, [texts, texts])
    monkeypatch.setattr(adapter, "TOKENS_A_PASS", 12)
    apart = matcher.score(images, [texts, texts])
    alone = [[matcher.score(image[None], [[text]])[0][0] for text in texts] for image in images]
    for rows in (apart, alone):
        for got, want in zip(chain(*rows), chain(*together), strict=True):
            assert got.itc == pytest.approx(want.itc, abs=1e-6)
            assert got.itm == pytest.approx(want.itm, abs=1e-6)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not HAS_PACKED_LINEAR, reason="torch without oneDNN")
@pytest.mark.parametrize("few_rows", [0, 10**6])
def test_bits_do_not_depend_on_the_batch(
    few_rows: int, folders: Any, texts: list[str], pixels: Any, monkeypatch: Any
) -> None:
    """Pixels to scores, embeddings and captions, images one by one, by two and by five, with fewer rows a pass."""
    monkeypatch.setattr(cross, "MAX_ABSORBED_ROWS", few_rows)
    filters, captioner, images = Blip.load(folders("filter")), Blip.load(folders("captioner")), pixels(5, 32)
    asked = [texts[:2], texts[1:], [], texts, texts[3:]]

    def results(size: int) -> list[Any]:
        found: list[Any] = []
        for part in (slice(start, start + size) for start in range(0, 5, size)):
            embeddings = filters.embed(images[part]).tolist()
            captions = captioner.captions(images[part], ["u", "v", "w", "x", "y"][part], range(2))
            found += zip(filters.score(images[part], asked[part]), embeddings, captions, strict=True)
        return found

    together = results(5)
    assert results(1) == together
    monkeypatch.setattr(adapter, "TOKENS_A_PASS", 12)
    monkeypatch.setattr(adapter, "ROWS_A_PASS", 4)
    assert results(2) == together


@pytest.mark.usefixtures("one_thread")
def test_encoded_images_give_the_same_captions(captioner: Blip, pixels: Any) -> None:
    images, uids = pixels(3, 32), ["u", "v", "w"]
    captions = captioner.captions(images, uids, [2, 0])
    assert captioner.captions_of(captioner.encode_images(images), uids, [2, 0]) == captions
    alone = zip(*(captioner.caption(images, uids, sample) for sample in (2, 0)), strict=True)
    assert [[c.text for c in row] for row in captions] == [[c.text for c in row] for row in alone]


@pytest.mark.parametrize("few_rows", [0, 10**6])
def test_towers_run_once(
    few_rows: int, matcher: Blip, captioner: Blip, texts: list[str], pixels: Any, monkeypatch: Any
) -> None:
    """Without keys where few rows ask."""
    monkeypatch.setattr(cross, "MAX_ABSORBED_ROWS", few_rows)
    once = Counter({"vision": 1}) if few_rows else Counter({"vision": 1, "kv0": 1, "kv1": 1})
    calls = count_calls(matcher)
    matcher.score(pixels(2, 32), [texts, texts])
    assert calls == once
    for method in ("nucleus", "greedy", "beam"):
        fresh = count_calls(captioner)
        captioner.decoding = captioner.decoding.model_copy(update={"method": method})
        captioner.captions(pixels(2, 32), ["u", "v"], range(3))
        assert fresh == once, method


def test_embed_is_unit(matcher: Blip, pixels: Any) -> None:
    embedding = matcher.embed(pixels(2, 32))
    assert embedding.shape == (2, 16)
    assert embedding.dtype == torch.float16
    torch.testing.assert_close(embedding.float().norm(dim=-1), torch.ones(2), atol=1e-3, rtol=0)


def test_too_long_text_is_counted_once(matcher: Blip, pixels: Any) -> None:
    matcher.score(pixels(1, 32), [["cat " * 100, "cat"]])
    assert matcher.tokenizer.truncated == 1


def test_caption_strips_the_prompt(captioner: Blip, pixels: Any) -> None:
    captions = captioner.caption(pixels(2, 32), ["u", "v"])
    assert [type(caption.text) for caption in captions] == [str, str]
    assert not any(caption.text.startswith("a picture of") for caption in captions)
    assert all(caption.logprob < 0 for caption in captions)


def test_roles(matcher: Blip, captioner: Blip, pixels: Any) -> None:
    assert matcher.roles == {"matcher", "embedder"}
    assert captioner.roles == {"captioner"}
    assert isinstance(matcher, Matcher)
    assert isinstance(matcher, Embedder)
    assert isinstance(captioner, Captioner)
    with pytest.raises(ConfigError, match="roles embedder, matcher, not captioner"):
        matcher.caption(pixels(1, 32), ["u"])
    for call in (
        lambda: captioner.score(pixels(1, 32), [["cat"]]),
        lambda: captioner.embed(pixels(1, 32)),
        lambda: captioner.embed_texts(["cat"]),
    ):
        with pytest.raises(ConfigError, match="roles captioner, not"):
            call()


def test_wrong_input(matcher: Blip, captioner: Blip, pixels: Any) -> None:
    with pytest.raises(InputError, match=r"\(1, 3, 40, 40\); this model takes \(batch, 3, 32, 32\)"):
        matcher.score(pixels(1, 40), [["cat"]])
    with pytest.raises(InputError, match="takes"):
        matcher.embed(torch.zeros(3, 32, 32))
    with pytest.raises(InputError, match="2 images but texts for 1"):
        matcher.score(pixels(2, 32), [["cat"]])
    with pytest.raises(InputError, match="is empty"):
        matcher.score(pixels(1, 32), [["cat", ""]])
    with pytest.raises(InputError, match="1 images but 2 uids"):
        captioner.caption(pixels(1, 32), ["u", "v"])
    assert matcher.score(pixels(2, 32), [[], []]) == [[], []]


def test_preprocess_to_caption(captioner: Blip, tmp_path: Path) -> None:
    """From PIL images on, and the same after a save and a load."""
    images = [Image.new("RGB", (70, 50), "red"), Image.new("L", (9, 9))]
    first = captioner.caption(captioner.preprocess(images), ["u", "v"])
    captioner.save(tmp_path)
    again = Blip.load(tmp_path)
    assert again.caption(again.preprocess(images), ["u", "v"]) == first
