import numpy as np
import pytest

from capfilt.errors import InputError
from capfilt.evaluation import bootstrap
from capfilt.evaluation.bootstrap import bootstrap_auc, bootstrap_mean
from capfilt.evaluation.matching import roc_auc


def test_the_interval_of_a_share_is_about_the_normal_one():
    low, high = bootstrap_mean(np.arange(368) < 74, seed=1)
    half = 1.96 * np.sqrt(0.2 * 0.8 / 368)
    assert low == pytest.approx(0.2 - half, abs=0.01)
    assert high == pytest.approx(0.2 + half, abs=0.01)


def test_seeded_and_not_dependent_on_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean(values, seed=3) + bootstrap_auc(values, values[::-1], seed=3)
    monkeypatch.setattr(bootstrap, "_CELLS", 170)
    assert bootstrap_mean(values, seed=3) + bootstrap_auc(values, values[::-1], seed=3) == pytest.approx(whole)
    assert bootstrap_mean(values, seed=4) != whole[:2]


def test_auc_draws_pairs_and_gives_the_auc_of_each_draw():
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(2, 7, 30), rng.integers(0, 5, 30)
    draws = np.random.default_rng(9).integers(0, 30, size=(200, 30))
    each = [roc_auc(positives[draw], negatives[draw]) for draw in draws]
    expected = np.percentile(each, [5, 95]).tolist()
    assert bootstrap_auc(positives, negatives, resamples=200, level=0.9, seed=9) == pytest.approx(expected)


def test_no_spread_no_interval():
    assert bootstrap_mean([1.0, 1.0]) == [1.0, 1.0]
    assert bootstrap_auc([1.0, 2.0], [0.0, 0.5]) == [1.0, 1.0]


def test_wrong_input_is_refused():
    for values in ([], [float("nan")], [[1.0]]):
        with pytest.raises(InputError):
            bootstrap_mean(values)
    with pytest.raises(InputError, match="level"):
        bootstrap_mean([1.0], level=95)
    with pytest.raises(InputError, match="paired"):
        bootstrap_auc([1.0, 2.0], [1.0])
