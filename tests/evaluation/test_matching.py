import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from capfilt.errors import InputError
from capfilt.evaluation.matching import (
    average_precision,
    expected_calibration_error,
    kept,
    mismatch,
    reliability,
    roc_auc,
)

SCORES = st.lists(st.integers(-4, 4).map(lambda value: value / 4), min_size=1, max_size=30)  # many ties


@settings(max_examples=100, deadline=None)
@given(SCORES, SCORES)
def test_auc_and_ap_are_those_of_scikit_learn(positives, negatives):
    truth = [1] * len(positives) + [0] * len(negatives)
    scores = positives + negatives
    assert roc_auc(positives, negatives) == pytest.approx(roc_auc_score(truth, scores))
    assert average_precision(positives, negatives) == pytest.approx(average_precision_score(truth, scores))


@settings(max_examples=100, deadline=None)
@given(SCORES, SCORES)
def test_auc_of_negated_scores_is_the_complement(positives, negatives):
    negated = roc_auc([-score for score in positives], [-score for score in negatives])
    assert negated == pytest.approx(1 - roc_auc(positives, negatives))
    assert roc_auc(negatives, positives) == pytest.approx(1 - roc_auc(positives, negatives))


def test_auc_by_hand():
    assert roc_auc([1.0, 2.0], [0.0, 0.5]) == 1.0
    assert roc_auc([1.0], [1.0, 1.0]) == 0.5
    with pytest.raises(InputError, match="negatives"):
        roc_auc([1.0], [])
    with pytest.raises(InputError, match="positives"):
        average_precision([float("nan")], [0.0])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 1000))
def test_mismatch_is_a_permutation_to_other_images(ids, seed):
    assume(2 * max(ids.count(each) for each in ids) <= len(ids))
    other = mismatch(len(ids), ids, seed)
    assert sorted(other.tolist()) == list(range(len(ids)))
    assert all(ids[i] != ids[j] for i, j in enumerate(other.tolist()))
    assert other.tolist() == mismatch(len(ids), ids, seed).tolist()


def test_mismatch_depends_on_the_seed_and_refuses_the_impossible():
    assert mismatch(50, range(50), 0).tolist() != mismatch(50, range(50), 1).tolist()
    with pytest.raises(InputError, match="'a' has 2 of 3"):
        mismatch(3, ["a", "a", "b"], 0)
    with pytest.raises(InputError, match="n = 3"):
        mismatch(3, ["a", "b"], 0)


def test_kept_counts_one_half_as_kept():
    assert kept([0.5, 0.49, 0.9, 0.1]) == 0.5
    with pytest.raises(InputError, match="logits or cosines"):
        kept([-1.0, 3.0])


def test_reliability_by_hand():
    table = reliability([1.0, 0.95, 0.31], [0.0, 0.35, 0.91])
    assert [row["count"] for row in table] == [1, 0, 0, 2, 0, 0, 0, 0, 0, 3]
    assert table[3]["predicted"] == pytest.approx(0.33)
    assert table[3]["observed"] == 0.5
    assert table[9]["observed"] == pytest.approx(2 / 3)
    assert table[1]["predicted"] is None
    assert table[1]["observed"] is None
    expected = (2 * 0.17 + 3 * (2.86 / 3 - 2 / 3)) / 6
    assert expected_calibration_error(table) == pytest.approx(expected)


def test_a_calibrated_judge_has_a_small_error():
    rng = np.random.default_rng(0)
    p = rng.random(20000)
    match = rng.random(20000) < p
    assert expected_calibration_error(reliability(p[match], p[~match])) < 0.02
