"""Captions against transformers, against themselves in other batches, and against teacher forcing."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from transformers import BlipConfig, BlipForConditionalGeneration

from capfilt.config.decoding import Decoding
from capfilt.errors import InputError
from capfilt.models.blip import cross
from capfilt.models.blip.checkpoint import hub_tensors
from capfilt.models.blip.config import to_transformers
from capfilt.models.blip.decoding import Generated, generate
from capfilt.models.blip.med import MED
from capfilt.models.torch_compat import HAS_PACKED_LINEAR
from tests.models.blip.decoders import CONFIG, PROMPT, SEP, build


def pixels(seed: int, images: int) -> Tensor:
    return 2 * torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def encode(med: MED, seed: int, images: int) -> Tensor:
    states: Tensor = med.vision(pixels(seed, images))
    return states


@cache
def empty_reference() -> BlipForConditionalGeneration:
    config = BlipConfig(**to_transformers(CONFIG))
    config._attn_implementation = "eager"
    return BlipForConditionalGeneration(config).eval()


def reference(med: MED) -> BlipForConditionalGeneration:
    """transformers' model with these weights."""
    model = empty_reference()
    missing = model.load_state_dict(hub_tensors(med), strict=False).missing_keys
    assert all("predictions.decoder" in key or "position_ids" in key for key in missing)
    return model


def reference_captions(med: MED, seed: int, images: int, decoding: Decoding) -> list[list[int]]:
    """`generate` strips the last prompt id, and writes [DEC] over the first: give it one more, and a copy."""
    ids = torch.cat([PROMPT, torch.tensor([SEP])]).repeat(images, 1)
    out = reference(med).generate(
        pixels(seed, images),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=decoding.num_beams if decoding.method == "beam" else 1,
        max_length=decoding.max_length,
        min_length=decoding.min_length,
        repetition_penalty=decoding.repetition_penalty,
        length_penalty=decoding.length_penalty,
    )
    captions = [row[len(PROMPT) :] for row in out.tolist()]
    return [row[: row.index(SEP)] if SEP in row else row for row in captions]


def drawn(med: MED, states: Tensor, uids: list[str], decoding: Decoding, sample: int = 0) -> list[Generated]:
    """One caption an image."""
    return [row[0] for row in generate(med, states, PROMPT, uids, decoding, [sample])]


def captions(med: MED, states: Tensor, uids: list[str], decoding: Decoding, sample: int = 0) -> list[list[int]]:
    return [ids for ids, _ in drawn(med, states, uids, decoding, sample)]


UIDS = [f"row-{i}" for i in range(8)]
LENGTHS = [(0, 12), (8, 16), (10, 20), (12, 12)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_equals_transformers(method: str, seed: int) -> None:
    med = build(seed, sep_bias=float(4 + seed % 6))
    low, high = LENGTHS[seed % 4]
    decoding = Decoding(
        method=method,
        min_length=low,
        max_length=high,
        repetition_penalty=(1.0, 1.1)[seed // 2 % 2],
        num_beams=4 if seed % 7 == 6 else 3,
        length_penalty=(1.0, 1.0, 0.0, 2.0)[seed // 3 % 4],
    )
    ours = captions(med, encode(med, seed, 5), UIDS[:5], decoding)
    assert ours == reference_captions(med, seed, 5, decoding)


def test_parity_models_end_at_many_lengths() -> None:
    decoding = Decoding(method="beam", min_length=0, max_length=20)
    lengths = set[int]()
    for seed in range(5):
        med = build(seed, sep_bias=4.0 + seed)
        lengths |= {len(ids) for ids in captions(med, encode(med, seed, 5), UIDS[:5], decoding)}
    assert {0, 16} < lengths
    assert len(lengths) >= 6


def test_ties_go_as_in_transformers() -> None:
    """Ids 20 and 40 have one embedding and so always one score."""
    med = build(3, sep_bias=5.0)
    med.text.word.weight.data[40] = med.text.word.weight.data[20]
    med.lm_head.bias.data[[20, 40]] = 4.0
    decoding = Decoding(method="greedy", min_length=6, max_length=14)
    ours = captions(med, encode(med, 3, 5), UIDS[:5], decoding)
    assert any(20 in ids for ids in ours)
    assert ours == reference_captions(med, 3, 5, decoding)


def test_one_beam_is_greedy() -> None:
    med = build(1)
    states = encode(med, 1, 4)
    greedy, beam = (Decoding(method=method, num_beams=1, min_length=0) for method in ("greedy", "beam"))
    assert drawn(med, states, UIDS[:4], greedy) == drawn(med, states, UIDS[:4], beam)


@cache
def one_at_a_time(method: str) -> tuple[MED, Tensor, list[list[int]]]:
    """Eight images and their captions, each made in a batch of one."""
    med = build(1, sep_bias=5.0)
    states = encode(med, 1, 8)
    decoding = Decoding(method=method, min_length=5, max_length=24, seed=11)
    alone = [captions(med, states[[i]], [UIDS[i]], decoding)[0] for i in range(8)]
    return med, states, alone


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 7), min_size=2, max_size=8), st.sampled_from(["nucleus", "greedy", "beam"]))
def test_a_caption_does_not_depend_on_its_batch(rows: list[int], method: str) -> None:
    """Any size, any place, reversed, with repeats."""
    med, states, alone = one_at_a_time(method)
    decoding = Decoding(method=method, min_length=5, max_length=24, seed=11)
    for order in (rows, rows[::-1]):
        got = captions(med, states[order], [UIDS[i] for i in order], decoding)
        assert got == [alone[i] for i in order]


@pytest.mark.parametrize("few_rows", [0, 10**6])
@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
def test_samples_together_are_those_drawn_one_by_one(
    method: str, few_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without the images' keys; rows of one image end at different lengths."""
    monkeypatch.setattr(cross, "MAX_ABSORBED_ROWS", few_rows)
    med, states, _ = one_at_a_time(method)
    decoding = Decoding(method=method, min_length=5, max_length=24, seed=11)
    together = generate(med, states, PROMPT, UIDS, decoding, [4, 0, 2])
    assert [len(row) for row in together] == [3] * 8
    for place, sample in enumerate([4, 0, 2]):
        alone = drawn(med, states, UIDS, decoding, sample)
        assert [row[place][0] for row in together] == [ids for ids, _ in alone]
        assert [row[place][1] for row in together] == pytest.approx([p for _, p in alone], abs=1e-5)
    if method == "nucleus":
        assert len({tuple(ids) for ids, _ in together[0]}) == 3


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not HAS_PACKED_LINEAR, reason="torch without oneDNN")
@pytest.mark.parametrize("few_rows", [0, 10**6])
@pytest.mark.parametrize("method", ["nucleus", "beam"])
def test_bits_do_not_depend_on_the_batch(method: str, few_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the log-probabilities, which show every rounding; one torch thread, as the stages have."""
    monkeypatch.setattr(cross, "MAX_ABSORBED_ROWS", few_rows)
    med, states, _ = one_at_a_time(method)
    decoding = Decoding(method=method, min_length=5, max_length=24, seed=11)
    whole = generate(med, states, PROMPT, UIDS, decoding, [0, 1, 2])
    for size in (1, 2, 3, 5):
        for start in range(0, 8, size):
            part = slice(start, start + size)
            assert generate(med, states[part], PROMPT, UIDS[part], decoding, [0, 1, 2]) == whole[part]


def test_nucleus_captions_differ_in_length_by_row_sample_and_seed() -> None:
    med, states, alone = one_at_a_time("nucleus")
    assert len({len(ids) for ids in alone}) >= 6
    same = states[[0] * 8]
    decoding = Decoding(min_length=5, max_length=24, seed=11)
    by_uid = captions(med, same, UIDS, decoding)
    assert len({tuple(ids) for ids in by_uid}) >= 7
    for other in (captions(med, same, UIDS, decoding, sample=1), captions(med, same, UIDS, Decoding(seed=12))):
        assert sum(a != b for a, b in zip(by_uid, other, strict=True)) >= 6
    assert captions(med, same, UIDS, decoding) == by_uid


def test_a_vanishing_nucleus_is_greedy() -> None:
    med, states, _ = one_at_a_time("nucleus")
    tiny = captions(med, states, UIDS, Decoding(top_p=1e-6, repetition_penalty=1.1))
    assert tiny == captions(med, states, UIDS, Decoding(method="greedy", repetition_penalty=1.1))


@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
def test_logprob_is_that_of_teacher_forcing(method: str) -> None:
    """Of the model as it is, whatever the rules; [SEP] counts where it came."""
    med = build(5, sep_bias=4.0)
    states = encode(med, 5, 8)
    decoding = Decoding(method=method, min_length=6, max_length=12, repetition_penalty=1.3, temperature=0.7)
    results = drawn(med, states, UIDS, decoding)
    assert {len(ids) == 8 for ids, _ in results} == {True, False}
    for row, (ids, logprob) in enumerate(results):
        generated = ids + [SEP] * (len(PROMPT) + len(ids) < decoding.max_length)
        whole = torch.cat([PROMPT, torch.tensor(generated)])[None]
        with torch.no_grad():
            logits = med.lm_logits(whole, med.cross_kv(states[[row]]))[0, len(PROMPT) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(generated)[:, None]).mean()
        assert logprob == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("method", ["nucleus", "greedy", "beam"])
def test_lengths_count_the_prompt(method: str) -> None:
    med = build(2, sep_bias=50.0)
    states = encode(med, 2, 3)
    short = drawn(med, states, UIDS[:3], Decoding(method=method, min_length=9))
    assert [len(ids) for ids, _ in short] == [5, 5, 5]
    med.lm_head.bias.data[SEP] = -50.0
    long = drawn(med, states, UIDS[:3], Decoding(method=method, min_length=0, max_length=11))
    assert [len(ids) for ids, _ in long] == [7, 7, 7]
    assert not any(SEP in ids for ids, _ in long)


def test_inputs_stay_as_they_are() -> None:
    med = build(2)
    states, prompt = encode(med, 2, 3), PROMPT.clone()
    before = states.clone()
    generate(med, states, prompt, UIDS[:3], Decoding(method="beam"))
    assert torch.equal(prompt, PROMPT)
    assert torch.equal(states, before)


def test_no_images_no_captions() -> None:
    med = build(0)
    assert generate(med, encode(med, 0, 1)[:0], PROMPT, [], Decoding()) == []
    assert generate(med, encode(med, 0, 2), PROMPT, UIDS[:2], Decoding(), []) == [[], []]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"num_beams": 0}, "num_beams"),
        ({"max_length": 1}, "max_length"),
        ({"min_length": -1}, "min_length"),
        ({"min_length": 31}, "min_length 31 is more than max_length 30"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"length_penalty": float("inf")}, "length_penalty"),
        ({"method": "sample"}, "method"),
        ({"top_k": 50}, "top_k"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Decoding.model_validate(fields)


def test_decoding_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Decoding().top_p = 0.5


def test_bad_calls_are_named() -> None:
    med = build(0)
    states = encode(med, 0, 2)
    two = UIDS[:2]
    with pytest.raises(InputError, match="3 uids for 2 images"):
        drawn(med, states, UIDS[:3], Decoding())
    with pytest.raises(InputError, match="begins with"):
        generate(med, states, PROMPT[1:], two, Decoding())
    with pytest.raises(InputError, match="begins with"):
        generate(med, states, PROMPT[None], two, Decoding())
    with pytest.raises(InputError, match="the prompt has 4 tokens, max_length is 4"):
        generate(med, states, PROMPT, two, Decoding(max_length=4, min_length=0))
    with pytest.raises(InputError, match="beyond the model's 40 positions"):
        generate(med, states, PROMPT, two, Decoding(max_length=41))
    with pytest.raises(InputError, match="train mode"):
        generate(build(0).train(), states, PROMPT, two, Decoding())
    with pytest.raises(InputError, match="no decoder"):
        generate(MED(CONFIG.with_halves(encoder=True, decoder=False)).eval(), states, PROMPT, two, Decoding())
    states[1] = float("nan")
    with pytest.raises(InputError, match="not finite for row-1;"):
        generate(med, states, PROMPT, two, Decoding())
