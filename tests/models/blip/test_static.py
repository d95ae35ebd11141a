"""The decoder of fixed shapes against `CachedDecoder`, on a CPU by the same code; on CUDA the graph against both."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capfilt.config.decoding import Decoding
from capfilt.errors import InputError
from capfilt.models.blip import static
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.decoding import Generated, choose_tokens, generate
from capfilt.models.blip.med import MED
from capfilt.models.blip.sampling import apply_rules
from capfilt.models.blip.static import StaticDecoder, release_all, round_up
from tests.models.blip.decoders import PROMPT, SEP, VOCAB, build

UIDS = [f"row-{i}" for i in range(13)]


@pytest.fixture(scope="module")
def med() -> MED:
    return build(4)


@pytest.fixture(scope="module")
def states(med: MED) -> Tensor:
    with torch.inference_mode():
        seen: Tensor = med.vision(2 * torch.randn(13, 3, 32, 32, generator=torch.Generator().manual_seed(4)))
    return seen


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each graph that is made."""
    made, real = list[int](), static.Graphed

    def counted(call: object, ids: Tensor, position: Tensor) -> object:
        made.append(len(ids))
        return real(call, ids, position)  # type: ignore[arg-type]

    monkeypatch.setattr(static, "Graphed", counted)
    return made


def alike(got: list[list[Generated]], expected: list[list[Generated]]) -> None:
    assert [[ids for ids, _ in row] for row in got] == [[ids for ids, _ in row] for row in expected]
    for row, other in zip(got, expected, strict=True):
        assert [p for _, p in row] == pytest.approx([p for _, p in other], abs=1e-4)


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]])
@pytest.mark.parametrize(
    ("decoding", "samples"),
    [
        (Decoding(min_length=5, max_length=24, seed=11), [4, 0, 2]),
        (Decoding(min_length=5, max_length=24, seed=11), [0]),
        (Decoding(min_length=8, max_length=9, seed=1, repetition_penalty=1.1, temperature=0.8), [0, 1, 2, 3]),
        (Decoding(method="greedy", min_length=5, max_length=30, repetition_penalty=1.1), [0, 1]),
        (Decoding(method="beam", num_beams=1, min_length=5, max_length=24), [0]),
    ],
)
def test_draws_what_the_other_decoder_draws(
    med: MED, states: Tensor, prompt: Tensor, decoding: Decoding, samples: list[int]
) -> None:
    expected = generate(med, states, prompt, UIDS, decoding, samples)
    got = generate(med, states, prompt, UIDS, decoding, samples, StaticDecoder(med))
    alike(got, expected)
    if decoding.max_length > 20:
        assert len({len(ids) for row in got for ids, _ in row}) >= 4


def test_rows_that_have_ended_are_asked_about_now_and_then(
    med: MED, states: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, real = list[int](), StaticDecoder.step

    def counted(self: StaticDecoder, ids: Tensor) -> Tensor:
        steps.append(ids.shape[1])
        return real(self, ids)

    monkeypatch.setattr(StaticDecoder, "step", counted)
    decoding = Decoding(method="greedy", min_length=0, max_length=40)
    longest = max(len(row[0][0]) for row in generate(med, states[:2], PROMPT, UIDS[:2], decoding, [0]))
    got = generate(med, states[:2], PROMPT, UIDS[:2], decoding, [0], StaticDecoder(med))
    assert max(len(row[0][0]) for row in got) == longest
    every, fed = StaticDecoder.check_every, len(steps) - 1  # the prompt is one call
    assert longest <= fed < longest + every <= decoding.max_length - len(PROMPT)
    assert (len(PROMPT) + fed) % every == 0


def test_graphs_are_few_and_serve_later_batches(med: MED, states: Tensor, captures: list[int]) -> None:
    """Nothing of one batch is seen by the next, whatever their sizes."""
    decoder = StaticDecoder(med)
    decoding = Decoding(min_length=5, max_length=20, seed=3)
    for images, sizes in ((5, [12]), (6, []), (2, [4]), (5, []), (13, [32]), (12, [24]), (6, [12]), (1, [2])):
        before = len(captures)
        for order in (slice(images), slice(13 - images, 13)):
            expected = generate(med, states[order], PROMPT, UIDS[order], decoding, [0, 1])
            alike(generate(med, states[order], PROMPT, UIDS[order], decoding, [0, 1], decoder), expected)
        assert captures[before:] == sizes
    for changed, samples in ((Decoding(max_length=12), [0, 1]), (Decoding(max_length=12), [5])):
        expected = generate(med, states, PROMPT, UIDS, changed, samples)
        alike(generate(med, states, PROMPT, UIDS, changed, samples, decoder), expected)
    assert captures[-2:] == [32, 16]


def test_memory_is_let_go_and_taken_again(med: MED, states: Tensor, captures: list[int]) -> None:
    decoder = StaticDecoder(med)
    first = generate(med, states, PROMPT, UIDS, Decoding(), [0], decoder)
    held = [weakref.ref(decoder._cross), weakref.ref(decoder._own), weakref.ref(decoder._steps[16])]
    gc.disable()  # it goes at once
    release_all()
    gc.enable()
    assert [one() for one in held] == [None, None, None]
    assert generate(med, states, PROMPT, UIDS, Decoding(), [0], decoder) == first
    assert captures == [16, 16]


def test_a_batch_that_is_not_finite_spoils_no_other(med: MED, states: Tensor) -> None:
    decoder = StaticDecoder(med)
    expected = generate(med, states, PROMPT, UIDS, Decoding(), [0], decoder)
    broken = states.clone()
    broken[7] = float("nan")
    with pytest.raises(InputError, match="not finite for row-7;"):
        generate(med, broken, PROMPT, UIDS, Decoding(), [0], decoder)
    assert generate(med, states, PROMPT, UIDS, Decoding(), [0], decoder) == expected


def test_beam_search_goes_without(med: MED, states: Tensor, captures: list[int]) -> None:
    beam = Decoding(method="beam")
    assert generate(med, states, PROMPT, UIDS, beam, [0], StaticDecoder(med)) == generate(
        med, states, PROMPT, UIDS, beam, [0]
    )
    assert captures == []


def test_a_cpu_has_none() -> None:
    assert Blip.load("tiny/captioner")._decoder() is None


def test_a_model_keeps_its_decoder_until_its_weights_change() -> None:
    blip = Blip.load("tiny/captioner")
    blip.device = torch.device("cuda")  # as on a GPU, but for the device
    first = blip._decoder()
    assert first is not None
    assert blip._decoder() is first
    blip.med.to(torch.bfloat16)
    second = blip._decoder()
    assert second is not first
    with torch.no_grad():
        blip.med.lm_head.bias += 1
    assert blip._decoder() is not second


@settings(derandomize=True)
@given(st.integers(1, 5000))
def test_sizes_are_few_and_near(images: int) -> None:
    size = round_up(images)
    assert images <= size <= images * 3 / 2
    assert round_up(size) == size
    assert len({round_up(n) for n in range(1, size + 1)}) <= 2 * size.bit_length()


@pytest.mark.parametrize("decoding", [Decoding(repetition_penalty=1.1), Decoding(method="greedy")])
def test_a_token_needs_no_value_on_the_host(med: MED, states: Tensor, decoding: Decoding) -> None:
    """torch's device without values stands for a GPU: to read one there is an error."""
    elsewhere = copy.deepcopy(med).to("meta")
    with torch.inference_mode():
        decoder = StaticDecoder(elsewhere)
        decoder.begin(states.to("meta"), 2, 24)
        prompt = PROMPT.to("meta").expand(13, -1)
        logits = decoder.step(prompt)
        assert logits.shape == (13, VOCAB)
        sequences = prompt.repeat_interleave(2, dim=0)
        scores = apply_rules(logits.repeat_interleave(2, dim=0), sequences, decoding.repetition_penalty, SEP)
        ids = choose_tokens(scores, torch.zeros(26, dtype=torch.float64, device="meta"), decoding)
        assert decoder.step(ids[:, None]).shape == (26, VOCAB)
        with pytest.raises(RuntimeError, match="meta"):
            logits.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("decoding", [Decoding(max_length=24, seed=11), Decoding(method="greedy", max_length=24)])
def test_the_graph_draws_what_eager_decoding_draws(med: MED, states: Tensor, decoding: Decoding) -> None:
    """Twice with one decoder, so that a graph is used again, and of both sizes."""
    on_gpu, seen = med.to("cuda"), states.to("cuda")
    try:
        decoder = StaticDecoder(on_gpu)
        for images in (13, 5, 13):
            part = slice(images)
            eager = generate(on_gpu, seen[part], PROMPT, UIDS[part], decoding, [0, 1, 2])
            alike(generate(on_gpu, seen[part], PROMPT, UIDS[part], decoding, [0, 1, 2], decoder), eager)
        assert len(decoder._steps) == 2
    finally:
        med.to("cpu")
