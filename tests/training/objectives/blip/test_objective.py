"""Numerics against the paper's formulas written out as loops, in float64 and without our vectorised code."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.training.batch import TrainBatch
from capfilt.training.objectives.blip import itm as module
from capfilt.training.objectives.blip.itm import hard_negatives, match_probability
from capfilt.training.objectives.blip.momentum import Momentum
from capfilt.training.objectives.blip.objective import BlipObjective
from capfilt.training.objectives.blip.settings import BlipSettings

pytestmark = pytest.mark.usefixtures("one_thread")

Med = Callable[..., Any]
TEXTS = ["a red disc", "a picture of a blue square on a wall", "a plain wall", "a green bar"]


def batch(ids: list[int] | None = None, seed: int = 0) -> TrainBatch:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return TrainBatch(pixels, list(TEXTS), torch.tensor(ids or [1, 2, 3, 4]), [f"row{i}" for i in range(4)])


def make(tiny_med: Med, **config: Any) -> BlipObjective:
    losses = {"itc": 0, "itm": 0, "lm": 0, "queue_size": 8} | config
    return BlipObjective(*tiny_med(), BlipSettings(**losses))


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row))
    return [x - top - total for x in row]


def reference_itc(
    queries: Tensor,
    momentum: Tensor,
    keys: Tensor,
    ids: list[int],
    all_ids: list[int],
    tau: float,
    alpha: float,
    own: bool,
) -> float:
    """One direction: mean over rows of -sum_k target_k * log softmax(q . k / tau)."""
    total = 0.0
    for i in range(len(queries)):
        sims = [float(queries[i].double() @ key.double()) / tau for key in keys]
        soft = [math.exp(x) for x in log_softmax([float(momentum[i].double() @ key.double()) / tau for key in keys])]
        right = [k == i if own else all_ids[k] == ids[i] for k in range(len(keys))]
        targets = [alpha * s + (1 - alpha) * r / sum(right) for s, r in zip(soft, right, strict=True)]
        total -= sum(t * x for t, x in zip(targets, log_softmax(sims), strict=True))
    return total / len(queries)


@pytest.mark.parametrize("positives", [False, True])
def test_itc_is_the_papers_with_queue_soft_targets_and_both_directions(tiny_med: Med, positives: bool) -> None:
    made = make(tiny_med, itc=1, positives=positives, temperature=0.1)
    made(batch(seed=1))  # fills half of the queue
    with torch.no_grad():
        for parameter in made.med.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    queued = [made.momentum.image_queue[:4].clone(), made.momentum.text_queue[:4].clone()]
    now = batch([1, 2, 2, 9], seed=2)
    made.ramp = 0.5
    loss = made(now)["itc"]
    tokens, mask = made.tokenizer.batch(now.texts)
    with torch.no_grad():
        live = [made.med.image_features(made.med.vision(now.pixels)), made.med.text_features(tokens, mask)]
        slow = made.momentum.med
        keys = [slow.image_features(slow.vision(now.pixels)), slow.text_features(tokens, mask)]
    ids = [1, 2, 2, 9]
    rest = (ids, [*ids, 1, 2, 3, 4], 0.1, 0.4 * 0.5, not positives)
    i2t = reference_itc(live[0], keys[0], torch.cat([keys[1], queued[1]]), *rest)
    t2i = reference_itc(live[1], keys[1], torch.cat([keys[0], queued[0]]), *rest)
    assert abs(i2t - t2i) > 1e-3
    assert float(loss) == pytest.approx((i2t + t2i) / 2, abs=1e-5)


def test_itm_has_one_positive_and_two_negatives_a_row(tiny_med: Med, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = make(tiny_med, itm=1), []
    found = iter([torch.tensor([1, 2, 3, 0]), torch.tensor([3, 0, 1, 2])])
    similarities = []

    def fixed(similarity: Tensor, ids: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        assert floor == 1e-4
        similarities.append(similarity)
        return next(found), torch.tensor([True, True, False, True])

    original = made.med.itm_logits

    def spy(ids: Tensor, mask: Tensor, kv: Any) -> Tensor:
        asked.append((ids, mask, kv[0][0]))
        return original(ids, mask, kv)

    monkeypatch.setattr(module, "hard_negatives", fixed)
    monkeypatch.setattr(made.med, "itm_logits", spy)
    now = batch()
    loss = made(now)["itm"]
    tokens, mask = made.tokenizer.batch(now.texts)
    with torch.no_grad():
        kv = made.med.cross_kv(made.med.vision(now.pixels))
        pairs = [(i, i, 1) for i in range(4)] + [(1, 0, 0), (2, 1, 0), (0, 3, 0)] + [(0, 3, 0), (1, 0, 0), (3, 2, 0)]
        total = 0.0
        for image, text, label in pairs:
            one = [(k[image : image + 1], v[image : image + 1]) for k, v in kv]
            logits = original(tokens[text : text + 1], mask[text : text + 1], one)[0].tolist()
            total -= log_softmax(logits)[label]
    assert float(loss) == pytest.approx(total / len(pairs), abs=1e-5)
    ((ids, _, keys),) = asked
    assert torch.equal(ids, tokens[[text for _, text, _ in pairs]])
    assert torch.allclose(keys, kv[0][0][[image for image, _, _ in pairs]])
    text_to_image, image_to_text = similarities  # the first draw is of images for texts
    assert torch.allclose(text_to_image, image_to_text.T, atol=1e-4)  # live and momentum weights are still equal
    assert not torch.allclose(text_to_image, image_to_text, atol=1e-2)


@pytest.mark.parametrize("prompt", ["", "a picture of "])
def test_lm_is_smoothed_cross_entropy_of_what_follows_the_prompt(tiny_med: Med, prompt: str) -> None:
    made, now = make(tiny_med, lm=1, prompt=prompt), batch()
    loss = float(made(now)["lm"])
    config, words = made.med.config.text, made.tokenizer.tokenizer
    total, count = 0.0, 0
    with torch.no_grad():
        kv = made.med.cross_kv(made.med.vision(now.pixels))
        for i, text in enumerate(now.texts):
            ids = [config.dec_id, *words.encode(prompt + text, add_special_tokens=False).ids, config.sep_id]
            skip = len(words.encode(prompt, add_special_tokens=False).ids)
            one = [(k[i : i + 1], v[i : i + 1]) for k, v in kv]
            logits = made.med.lm_logits(torch.tensor([ids]), one)[0].double()
            for place in range(skip, len(ids) - 1):
                logs = log_softmax(logits[place].tolist())
                smooth = [0.1 / len(logs) + (0.9 if v == ids[place + 1] else 0.0) for v in range(len(logs))]
                total -= sum(s * x for s, x in zip(smooth, logs, strict=True))
                count += 1
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_terms_are_weighted_and_itm_alone_still_learns_its_similarities(tiny_med: Med) -> None:
    torch.manual_seed(0)
    plain = make(tiny_med, itc=1, itm=1, lm=1)(batch())
    torch.manual_seed(0)
    weighted = make(tiny_med, itc=2, itm=0.5, lm=3)(batch())
    assert list(plain) == list(weighted) == ["itc", "itm", "lm"]
    assert [float(weighted[n] / plain[n]) for n in plain] == pytest.approx([2, 0.5, 3])
    assert list(make(tiny_med, lm=1)(batch())) == ["lm"]
    assert float(make(tiny_med, itm=1)(batch())["itc"]) == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=7), st.integers(0, 2**31), st.sampled_from([1.0, 80.0, math.nan])
)
def test_hard_negatives_are_never_of_the_same_image(ids: list[int], seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    names = torch.tensor(ids)
    drawn, there = hard_negatives(torch.randn(len(ids), len(ids)) * scale, names)
    assert there.tolist() == [any(other != own for other in ids) for own in ids]
    assert not ((names[drawn] == names) & there).any()


def test_hard_negatives_follow_the_similarities_with_a_floor() -> None:
    torch.manual_seed(0)
    rows = torch.tensor([[0.0, 2.0, 0.0, -30.0]]).repeat(4000, 1)
    ids = torch.tensor([7, 8, 9, 10])
    weights = rows[0].softmax(-1) + 1e-4
    counts = torch.zeros(4)
    for start in range(0, 4000, 4):
        drawn, _ = hard_negatives(rows[start : start + 4], ids)
        counts[drawn[0]] += 1
    expected = torch.tensor([0.0, *weights[1:]]) / weights[1:].sum()
    assert torch.allclose(counts / 1000, expected, atol=0.04)


def test_a_batch_of_one_image_has_positives_only(tiny_med: Med) -> None:
    made = make(tiny_med, itc=1, itm=1, positives=True)
    terms = made(batch([5, 5, 5, 5]))
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    assert made.med.itm_head.weight.grad is not None


def test_the_queue_is_a_ring(tiny_med: Med) -> None:
    queue = Momentum(tiny_med()[0], 0.9, 6)
    for start in (0, 2, 4, 6):
        ids = torch.tensor([start, start + 1])
        keys = ids[:, None].float().expand(2, 16)
        queue.enqueue(keys, -keys, ids)
        assert int(queue.filled) == min(6, start + 2)
        assert (
            queue.id_queue[: int(queue.filled)].tolist() == sorted(queue.id_queue[: int(queue.filled)].tolist())
            or start == 6
        )
    assert queue.id_queue.tolist() == [6, 7, 2, 3, 4, 5]
    assert queue.image_queue[:, 0].tolist() == [6, 7, 2, 3, 4, 5]
    assert queue.text_queue[:, 0].tolist() == [-6, -7, -2, -3, -4, -5]
    with pytest.raises(ConfigError, match=r"queue_size: 6 is not a multiple of the global batch 4; take 4"):
        queue.enqueue(torch.zeros(4, 16), torch.zeros(4, 16), torch.arange(4))


def test_no_queue_and_no_enqueueing_in_eval_mode(tiny_med: Med) -> None:
    assert make(tiny_med, itc=1, queue_size=0)(batch())["itc"].isfinite()
    made = make(tiny_med, itc=1).eval()
    made(batch())
    assert int(made.momentum.filled) == 0


def test_start_step_clamps_tau_and_moves_the_copies(tiny_med: Med) -> None:
    made = make(tiny_med, itc=1, momentum=0.9)
    before = {name: p.clone() for name, p in made.momentum.med.named_parameters()}
    with torch.no_grad():
        for parameter in made.med.parameters():
            parameter += 1
    for tau, clamped in ((0.9, 0.5), (-1.0, 0.001), (0.2, 0.2)):
        made.temperature.data.fill_(tau)
        made.advance(0.25)
        assert float(made.temperature) == pytest.approx(clamped)
    assert made.ramp == 0.25
    for name, parameter in made.momentum.med.named_parameters():
        assert torch.allclose(parameter, before[name] + 1 - 0.9**3, atol=1e-5)
        assert not parameter.requires_grad
    names = {name.split(".")[0] for name in before}
    assert names == {"vision", "text", "vision_proj", "text_proj"}
    assert not any("cross_attention" in name or "decoder" in name for name in before)


def test_bf16_autocast_keeps_similarities_and_losses_in_float32(tiny_med: Med) -> None:
    exact = make(tiny_med, itc=1, itm=1, lm=1)
    torch.manual_seed(0)
    expected = exact(batch())
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        terms = make(tiny_med, itc=1, itm=1, lm=1)(batch())
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(float(terms[n]) == pytest.approx(float(expected[n]), rel=0.02) for n in terms)
    i2t = F.normalize(torch.randn(4, 16), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        _, similarity, _ = make(tiny_med, itc=1)._itc(
            batch().pixels, exact.med.vision(batch().pixels), *exact.tokenizer.batch(TEXTS), torch.arange(4)
        )
    assert similarity.dtype == i2t.dtype == torch.float32


def test_what_cannot_be_is_refused(tiny_med: Med) -> None:
    with pytest.raises(ConfigError, match="half the initial checkpoint does not have"):
        BlipObjective(*tiny_med(decoder=False), BlipSettings(queue_size=0))
    with pytest.raises(ConfigError, match="leaves no token after"):
        BlipObjective(*tiny_med(max_tokens=5), BlipSettings(itc=0, itm=0, prompt="a picture of "))
    with pytest.raises(ValueError, match="end it with a space"):
        BlipSettings(prompt="a picture of")


def test_a_perfect_itc_gives_itm_its_own_labels() -> None:
    """With similarities that are the log density ratio of 64 equal classes the soft target is Bayes' posterior."""
    same = torch.eye(64).repeat(1, 4) * 60.0  # a queue of three more keys of each class
    found = match_probability(same, same)
    density_ratio = 64.0  # p(text | image) / p(text) of a match
    assert found.diag().numpy() == pytest.approx(density_ratio / (density_ratio + 2), rel=1e-4)
    assert found[0, 1].item() < 1e-6
    flat = torch.zeros(8, 24)
    assert torch.allclose(match_probability(flat, flat), torch.full((8, 8), 1 / 3))


def test_the_floor_sets_the_share_of_easy_negatives() -> None:
    peaked = torch.zeros(40, 40)
    peaked[:, 1] = 50.0
    ids = torch.arange(40)
    torch.manual_seed(0)
    for floor, share in ((1e-4, 0.996), (1 / 40, 0.5)):
        drawn = torch.cat([hard_negatives(peaked, ids, floor)[0][2:] for _ in range(100)])
        assert (drawn == 1).float().mean().item() == pytest.approx(share, abs=0.03)
