from typing import Any, get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.selection.reasons import REASONS
from capfilt.selection.texts import Texts
from capfilt.selection.verdicts import decide
from capfilt.store.arrays import Reasons, equal

Row = tuple[int, str, int, float | None, float | None]
"""image, origin, sample, itc, itm."""
POLICIES = get_args(PolicyName)


def texts(*rows: Row, refused: dict[int, str] | None = None, failed: bool = False) -> Texts:
    image, origin, sample, itc, itm = zip(*rows, strict=True) if rows else ((),) * 5
    known = np.full(len(rows), None, dtype=object)
    for i, reason in (refused or {}).items():
        known[i] = reason
    return Texts(
        np.array(image, dtype=np.int64),
        np.array(origin, dtype=object),
        np.array(sample, dtype=np.int64),
        np.array(itc, dtype=np.float32),
        np.array(itm, dtype=np.float32),
        known,
        np.full(len(rows), failed),
    )


def reasons(*rows: Row, refused: dict[int, str] | None = None, failed: bool = False, **select: Any) -> list[str | None]:
    return list(decide(texts(*rows, refused=refused, failed=failed), SelectSettings(**select)))


def web(itc: float | None = None, itm: float | None = None, image: int = 0) -> Row:
    return (image, "web", -1, itc, itm)


def synthetic(sample: int, itc: float | None = None, itm: float | None = None, image: int = 0) -> Row:
    return (image, "synthetic", sample, itc, itm)


def test_a_score_at_the_threshold_passes_as_it_is_stored() -> None:
    assert reasons(web(itm=0.9), itm_threshold=0.9) == [None]
    assert reasons(web(itm=0.89), itm_threshold=0.9) == ["below_itm_threshold"]
    assert reasons(web(itc=-0.3), itc_threshold=-0.3, policy="itc_threshold") == [None]


def test_a_failed_row_says_so_in_place_of_no_score() -> None:
    assert reasons(web(), failed=True) == ["score_failed"]
    assert reasons(web(), failed=True, policy="keep_all") == [None]


def test_thresholds_of_an_origin_go_before_the_common_one() -> None:
    own = {"synthetic": {"itm_threshold": 0.8}, "web": {"itc_threshold": 0.9}}
    assert reasons(web(itm=0.6), synthetic(0, itm=0.6), per_origin=own) == [None, "below_itm_threshold"]


def test_top_k_ranks_by_score_then_web_then_sample() -> None:
    rows = (web(itm=0.5), synthetic(0, itm=0.7), synthetic(1, itm=0.5), synthetic(2, itm=0.5), web(itm=0.1, image=1))
    assert reasons(*rows, policy="top_k", top_k=2) == [None, None, "not_top_k", "not_top_k", None]
    assert reasons(*rows, policy="top_k", top_k=3)[2:4] == [None, "not_top_k"]


def test_top_k_gives_no_place_to_refused_and_unscored_texts() -> None:
    rows = (web(itm=0.9), synthetic(0), synthetic(1, itm=0.2))
    assert reasons(*rows, refused={0: "no_text"}, policy="top_k") == ["no_text", "no_score", None]


def test_top_k_by_itc() -> None:
    rows = (web(0.1, 0.9), synthetic(0, 0.4, 0.1))
    assert reasons(*rows, policy="top_k", rank_by="itc") == ["not_top_k", None]


def test_max_texts_takes_the_best_that_passed() -> None:
    rows = (web(itm=0.4), synthetic(0, itm=0.6), synthetic(1, itm=0.9), synthetic(2, itm=0.7))
    expected = ["below_itm_threshold", "over_max_texts", None, "over_max_texts"]
    assert reasons(*rows, max_texts_per_image=1) == expected
    assert reasons(web(), synthetic(0), policy="keep_all", max_texts_per_image=1) == [None, "over_max_texts"]


def test_human_texts_are_kept_unless_refused() -> None:
    human = (0, "human", -1, None, 0.01)
    assert reasons(human) == [None]
    assert reasons(human, policy="top_k") == [None]
    assert reasons(human, refused={0: "contaminated"}) == ["contaminated"]


def test_nothing_to_decide() -> None:
    assert all(reasons(policy=policy, max_texts_per_image=2) == [] for policy in POLICIES)


scores = st.none() | st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32)


@st.composite
def shards(draw: st.DrawFn) -> Texts:
    rows: list[Row] = []
    refused: dict[int, str] = {}
    for image in range(draw(st.integers(0, 4))):
        own = draw(st.sampled_from(["web", "human"]))
        if draw(st.booleans()):
            refused[len(rows)] = draw(st.sampled_from(["no_text", "duplicate:exact"]))
        rows.append((image, own, -1, draw(scores), draw(scores)))
        captions = draw(st.integers(0, 3)) if own == "web" else 0
        rows += [(image, "synthetic", i, draw(scores), draw(scores)) for i in range(captions)]
    return texts(*rows, refused=refused, failed=draw(st.booleans()))


limits = st.none() | st.integers(1, 3)
policies = st.sampled_from(POLICIES)


def kept(reasons: Reasons) -> set[int]:
    return set(np.flatnonzero(equal(reasons, None)).tolist())


@given(shards(), policies, limits, st.sampled_from(["itm", "itc"]))
def test_every_reason_is_a_listed_one_and_limits_hold(shard: Texts, policy: Any, most: int | None, by: Any) -> None:
    select = SelectSettings(policy=policy, max_texts_per_image=most, rank_by=by, top_k=2)
    out = decide(shard, select)
    assert len(out) == len(shard.image)
    assert {str(reason).split(":")[0] for reason in out if reason} <= {reason.split(":")[0] for reason in REASONS}
    assert all(out[i] == reason for i, reason in enumerate(shard.refused) if reason)
    passed = shard.image[equal(out, None)]
    assert max(np.bincount(passed), default=0) <= min(most or 4, 2 if policy == "top_k" else 4)
    assert set(out[equal(shard.refused, None) & equal(shard.origin, "human")]) <= {None}


@given(
    shards(), policies, limits, st.floats(0, 1), st.floats(0, 1), st.sampled_from(["itm_threshold", "itc_threshold"])
)
def test_a_higher_threshold_never_keeps_more(
    shard: Texts, policy: Any, most: int | None, a: float, b: float, name: str
) -> None:
    low, high = (
        decide(shard, SelectSettings(**{"policy": policy, "max_texts_per_image": most, name: value}))
        for value in sorted((a, b))
    )
    assert len(kept(high)) <= len(kept(low))
    if most is None:
        assert kept(high) <= kept(low)


@given(shards(), limits)
def test_images_are_decided_apart(shard: Texts, most: int | None) -> None:
    whole = decide(shard, SelectSettings(policy="top_k", max_texts_per_image=most))
    for image in set(shard.image.tolist()):
        those = shard.image == image
        alone = Texts(**{name: values[those] for name, values in vars(shard).items()})
        assert list(decide(alone, SelectSettings(policy="top_k", max_texts_per_image=most))) == list(whole[those])
