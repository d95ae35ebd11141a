"""Keyed noise, the two rules, and the nucleus: exact on small distributions."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capfilt.models.blip.sampling import (
    apply_rules,
    draw,
    keyed_noise,
    keyed_uniform,
    nucleus,
    nucleus_by_class,
    nucleus_by_sorting,
)


def logits(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ((0, "", 0, 0), 0.5920556734180551),
        ((0, "row-0", 0, 5), 0.9734815341389662),
        ((-7, "日本/1.jpg", 3, 29), 0.5604321855410198),
        ((2**70, "\ud800", 0, 1), 0.6804921566366852),
    ],
)
def test_keyed_uniform_is_fixed(key: tuple[int, str, int, int], value: float) -> None:
    """A change of these values changes every caption ever made."""
    assert keyed_uniform(*key) == value


def test_keyed_uniform_is_uniform_and_independent() -> None:
    """Kolmogorov-Smirnov at the 0.1 % level, for the four parts of the key; neighbours uncorrelated."""
    count = 4000
    streams = {
        "seed": [keyed_uniform(i, "x", 0, 5) for i in range(count)],
        "uid": [keyed_uniform(0, f"{i:08d}", 0, 5) for i in range(count)],
        "sample": [keyed_uniform(0, "x", i, 5) for i in range(count)],
        "position": [keyed_uniform(0, "x", 0, i) for i in range(count)],
    }
    steps = torch.arange(count + 1) / count
    for values in map(torch.tensor, streams.values()):
        ordered = values.sort().values
        assert max((ordered - steps[:-1]).max(), (steps[1:] - ordered).max()) < 1.95 / count**0.5
        assert abs(torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]) < 4 / count**0.5
    matrix = torch.corrcoef(torch.stack([torch.tensor(values) for values in streams.values()]))
    assert (matrix - torch.eye(4)).abs().max() < 4 / count**0.5


@settings(deadline=None)
@given(st.tuples(st.integers(), st.text(), st.integers(), st.integers()))
def test_keyed_uniform_range(key: tuple[int, str, int, int]) -> None:
    value = keyed_uniform(*key)
    assert 0.0 <= value < 1.0
    assert value * 2**53 == int(value * 2**53)


def test_no_two_keys_run_together() -> None:
    keys = itertools.product((1, 11, -1), ("", "1", "1:1", ":1"), (1, 11), (1, 11))
    values = [keyed_uniform(*key) for key in keys]
    assert len(set(values)) == len(values)


def test_keyed_noise_is_keyed_uniform() -> None:
    noise = keyed_noise(3, ["a", "b"], 2, 4)
    assert noise.dtype == torch.float64
    assert noise.tolist() == [[keyed_uniform(3, uid, 2, i) for i in range(4)] for uid in "ab"]
    assert keyed_noise(3, [], 2, 4).shape == (0, 4)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, {1}),
        (0.45, {1}),
        (0.55, {1, 3}),
        (0.74, {1, 3}),
        (0.76, {0, 1, 3}),
        (0.94, {0, 1, 2, 3}),
        (1.0, {*range(5)}),
    ],
)
def test_nucleus_is_the_smallest_set(top_p: float, kept: set[int]) -> None:
    """The token that crosses is in."""
    weights = nucleus(logits(0.15, 0.5, 0.05, 0.25, 0.05), top_p)[0]
    assert weights.dtype == torch.float64
    assert set(weights.nonzero()[:, 0].tolist()) == kept
    assert weights[1] == pytest.approx(0.5)


def test_nucleus_takes_equal_probabilities_by_id() -> None:
    assert nucleus(torch.zeros(1, 8), 0.5)[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert nucleus(logits(0.125, 0.25, 0.125, 0.25, 0.25), 0.6)[0].nonzero()[:, 0].tolist() == [1, 3, 4]


def test_temperature_divides_the_logits() -> None:
    weights = nucleus(logits(0.8, 0.2), 1.0, temperature=2.0)[0]
    assert (weights[0] / weights[1]).item() == pytest.approx(2.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.floats(1e-3, 1.0), st.floats(0.1, 8.0), st.booleans())
def test_nucleus_by_its_definition(seed: int, vocab: int, top_p: float, scale: float, coarse: bool) -> None:
    """Against a plain loop, with ties where `coarse`; each row as if alone."""
    scores = scale * torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed))
    scores = scores.round() if coarse else scores
    got = nucleus(scores, top_p)
    for row in range(3):
        probabilities = torch.softmax(scores[row].double(), 0)
        order = sorted(range(vocab), key=lambda i: (-probabilities[i].item(), i))
        mass, kept = 0.0, set[int]()
        for i in order:
            if mass >= top_p:
                break
            kept.add(i)
            mass += probabilities[i].item()
        assert set(got[row].nonzero()[:, 0].tolist()) == kept
        assert torch.equal(got[row], nucleus(scores[row : row + 1], top_p)[0])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([2, 300, 5000]),
    st.floats(1e-3, 1.0),
    st.sampled_from([0.0, 0.01, 1.0, 6.0, 60.0]),
    st.sampled_from([None, 0, 2]),
)
def test_nucleus_without_a_sort(seed: int, vocab: int, top_p: float, scale: float, digits: int | None) -> None:
    """Bit for bit that of a whole sort: flat, peaked and vanishing tails, and ties where scores are rounded."""
    scores = scale * torch.randn(4, vocab, generator=torch.Generator().manual_seed(seed))
    probabilities = (scores if digits is None else scores.round(decimals=digits)).double().softmax(-1)
    assert torch.equal(nucleus_by_class(probabilities, top_p), nucleus_by_sorting(probabilities, top_p))


@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.75, 1 - 2**-20, 1.0])
def test_nucleus_without_a_sort_where_the_mass_meets_top_p(top_p: float) -> None:
    """Sums that are exact, so that one bit would decide: such rows are sorted."""
    quarters = torch.tensor([[0.125, 0.25, 0.125, 0.25, 0.25, 0.0], [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125]])
    for probabilities in (quarters.double(), torch.full((1, 64), 1 / 64).double()):
        assert torch.equal(nucleus_by_class(probabilities, top_p), nucleus_by_sorting(probabilities, top_p))


def test_draw_runs_by_id() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(weights.expand(6, -1), uniform).tolist() == [1, 1, 3, 3, 4, 4]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(any), st.sampled_from([0.0, 0.5, 1 - 2**-53]))
def test_draw_hits_a_weight(weights: list[float], uniform: float) -> None:
    token = draw(torch.tensor([weights], dtype=torch.float64), torch.tensor([uniform], dtype=torch.float64))
    assert weights[int(token)] > 0


def test_draws_follow_the_truncated_distribution() -> None:
    count = 20000
    weights = nucleus(logits(0.4, 0.05, 0.3, 0.2, 0.05), 0.85)
    uniform = torch.tensor([keyed_uniform(0, f"row-{i}", 0, 5) for i in range(count)], dtype=torch.float64)
    drawn = torch.bincount(draw(weights.expand(count, -1), uniform), minlength=5) / count
    expected = torch.tensor([4 / 9, 0, 3 / 9, 2 / 9, 0])
    assert (drawn - expected).abs().max() < 4 * 0.5 / count**0.5
    assert drawn[1] == drawn[4] == 0


def test_rules() -> None:
    scores = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    seen = torch.tensor([[0, 1, 1]])
    assert apply_rules(scores, seen, 2.0, None).tolist() == [[1.0, -4.0, 1.0, -1.0]]
    assert apply_rules(scores, seen, 2.0, 0).tolist() == [[-torch.inf, -4.0, 1.0, -1.0]]
    assert apply_rules(scores, seen, 1.0, None) is scores
    assert scores.tolist() == [[2.0, -2.0, 1.0, -1.0]]
