"""`Blip`: scores are made of its parts, towers run once, roles are declared."""

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from capfilt.errors import ConfigError, InputError
from capfilt.models.blip import adapter, cross, judging
from capfilt.models.blip.adapter import Blip
from capfilt.models.protocols import EvaluatedCaptioner, RetrievalJudge, System
from capfilt.models.torch_compat import HAS_PACKED_LINEAR
from tests.models.check_system import check_system


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
    flat, index = [*texts[:2], *texts[1:]], [0, 0, 2, 2, 2]
    itc = (matcher.embed(states) @ matcher.embed_texts(flat).T)[index, torch.arange(5)]
    itm = matcher.itm_logits(states, flat, index).softmax(-1)[:, 1]
    matches = [match for row in rows for match in row]
    torch.testing.assert_close(torch.tensor([m.itc for m in matches]), itc)
    torch.testing.assert_close(torch.tensor([m.itm for m in matches]), itm)
    assert all(-1 <= m.itc <= 1 and 0 <= m.itm <= 1 for m in matches)


def test_score_does_not_depend_on_the_batch(matcher: Blip, texts: list[str], pixels: Any, monkeypatch: Any) -> None:
    """Padding and the bound of texts a pass change nothing but rounding."""
    images = pixels(2, 32)
    together = matcher.score(images, [texts, texts])
    monkeypatch.setattr(judging, "TOKENS_PER_PASS", 12)
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
            embeddings = filters.embed(filters.encode_images(images[part])).tolist()
            seen = captioner.encode_images(images[part])
            captions = captioner.captions(seen, ["u", "v", "w", "x", "y"][part], range(2))
            found += zip(filters.score(images[part], asked[part]), embeddings, captions, strict=True)
        return found

    together = results(5)
    assert results(1) == together
    monkeypatch.setattr(judging, "TOKENS_PER_PASS", 12)
    monkeypatch.setattr(adapter, "ROWS_PER_PASS", 4)
    assert results(2) == together


@pytest.mark.usefixtures("one_thread")
def test_encoded_images_give_the_same_captions(captioner: Blip, pixels: Any) -> None:
    images, uids = pixels(3, 32), ["u", "v", "w"]
    captions = captioner.captions(captioner.encode_images(images), uids, [2, 0])
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
        captioner.captions(captioner.encode_images(pixels(2, 32)), ["u", "v"], range(3))
        assert fresh == once, method


def test_embed_is_unit(matcher: Blip, pixels: Any) -> None:
    embedding = matcher.embed(matcher.encode_images(pixels(2, 32)))
    assert embedding.shape == (2, matcher.embed_dim) == (2, 16)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2), atol=1e-3, rtol=0)


def test_too_long_text_is_counted_once(matcher: Blip, pixels: Any) -> None:
    matcher.score(pixels(1, 32), [["cat " * 100, "cat"]])
    assert matcher.tokenizer.truncated == 1


def test_caption_strips_the_prompt(captioner: Blip, pixels: Any) -> None:
    captions = captioner.caption(pixels(2, 32), ["u", "v"])
    assert [type(caption.text) for caption in captions] == [str, str]
    assert not any(caption.text.startswith("a picture of") for caption in captions)
    assert all(caption.logprob < 0 for caption in captions)


def test_roles(matcher: Blip, captioner: Blip, pixels: Any) -> None:
    assert matcher.roles == {"judge", "embedder"}
    assert captioner.roles == {"captioner"}
    assert set(matcher.card.scores) == {"itc", "itm"}
    assert captioner.card.scores == ()
    with pytest.raises(ConfigError, match="roles embedder, judge, not captioner"):
        matcher.caption(pixels(1, 32), ["u"])
    for call in (
        lambda: captioner.score(pixels(1, 32), [["cat"]]),
        lambda: captioner.embed(captioner.encode_images(pixels(1, 32))),
        lambda: captioner.embed_texts(["cat"]),
    ):
        with pytest.raises(ConfigError, match="roles captioner, not"):
            call()


def test_wrong_input(matcher: Blip, captioner: Blip, pixels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\(1, 3, 40, 40\); this model takes \(batch, 3, 32, 32\)"):
        matcher.score(pixels(1, 40), [["cat"]])
    with pytest.raises(InputError, match="takes"):
        matcher.encode_images(torch.zeros(3, 32, 32))
    with pytest.raises(InputError, match="2 images but texts for 1"):
        matcher.score(pixels(2, 32), [["cat"]])
    with pytest.raises(InputError, match="is empty"):
        matcher.score(pixels(1, 32), [["cat", ""]])
    with pytest.raises(InputError, match="1 images but 2 uids"):
        captioner.caption(pixels(1, 32), ["u", "v"])
    monkeypatch.setattr(adapter, "ROWS_PER_PASS", 1)
    with pytest.raises(InputError, match="3 images but 2 uids"):
        captioner.captions(captioner.encode_images(pixels(3, 32)), ["u", "v"], [0])
    assert matcher.score(pixels(2, 32), [[], []]) == [[], []]


def test_preprocess_to_caption(captioner: Blip, tmp_path: Path) -> None:
    """From PIL images on, and the same after a save and a load."""
    images = [Image.new("RGB", (70, 50), "red"), Image.new("L", (9, 9))]
    first = captioner.caption(captioner.preprocess(images), ["u", "v"])
    captioner.save(tmp_path)
    again = Blip.load(tmp_path)
    assert again.caption(again.preprocess(images), ["u", "v"]) == first


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["tiny/captioner", "tiny/filter", "tiny/pretrained"])
def test_a_blip_is_a_system(name: str) -> None:
    """mypy checks the signatures here, `check_system` what they do."""
    blip = Blip.load(name)
    judge: RetrievalJudge = blip
    captioner: EvaluatedCaptioner = blip
    systems: list[System] = [judge, captioner]
    assert systems[0] is systems[1]
    check_system(blip)


def test_states_of_another_system_are_refused(matcher: Blip) -> None:
    with pytest.raises(InputError, match="states are list, not a tensor"):
        matcher.embed([[0.5]])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 images, 0 of them with 'pixels'"):
        matcher.encode([b"a file"])


def test_encoder_keys_are_equal_where_states_are(matcher: Blip, folders: Any, pixels: Any) -> None:
    again, other = Blip.load(folders("filter")), Blip.load(folders("captioner"))
    assert again.encoder_key == matcher.encoder_key
    assert other.encoder_key != matcher.encoder_key or torch.equal(
        other.encode_images(pixels(1, 32)), matcher.encode_images(pixels(1, 32))
    )
    with torch.no_grad():
        again.med.vision.blocks[0].norm1.bias[0] += 1
    assert again.encoder_key != matcher.encoder_key
    again.share_encoder(matcher)
    assert again.med.vision is matcher.med.vision
    half = Blip.load(folders("filter"))
    half.med.half()
    assert half.encoder_key != matcher.encoder_key


@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
@pytest.mark.parametrize(("bias", "finish"), [(100.0, "stop"), (-100.0, "length")])
def test_a_caption_that_was_cut_off_says_so(
    bias: float, finish: str, method: str, captioner: Blip, pixels: Any
) -> None:
    with torch.no_grad():
        captioner.med.lm_head.bias[captioner.config.text.sep_id] += bias
    change = {"max_length": 7, "min_length": 6, "method": method}
    captioner.decoding = captioner.decoding.model_copy(update=change)
    found = captioner.captions(captioner.encode_images(pixels(2, 32)), ["u", "v"], range(2))
    assert {caption.finish for row in found for caption in row} == {finish}
