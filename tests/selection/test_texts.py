"""What policies ask of a shard's texts: thresholds by origin in float32, places within an image, the first reason."""

from typing import Any

import numpy as np

from capfilt.config.pipeline import SelectSettings
from capfilt.selection.texts import Texts, first_true, rank


def texts(**changes: Any) -> Texts:
    """Two images: a web text with two captions, and a human text."""
    columns: dict[str, Any] = {
        "image": np.array([0, 0, 0, 1]),
        "origin": np.array(["web", "synthetic", "synthetic", "human"], dtype=object),
        "sample": np.array([-1, 0, 1, -1]),
        "itc": np.array([0.1, 0.3, np.nan, 0.2], dtype=np.float32),
        "itm": np.array([0.9, 0.9, 0.2, 0.1], dtype=np.float32),
        "refused": np.array([None, None, "no_text", None], dtype=object),
        "failed": np.zeros(4, dtype=bool),
    }
    return Texts(**columns | changes)


def test_judged_are_those_that_are_neither_refused_nor_human() -> None:
    assert texts().judged.tolist() == [True, True, False, False]


def test_a_null_score_is_missing_and_not_below() -> None:
    select = SelectSettings(itc_threshold=0.25)
    assert texts().missing("itc").tolist() == [False, False, True, False]
    assert texts().below("itc", select).tolist() == [True, False, False, True]


def test_an_origin_s_own_threshold_replaces_the_common_one() -> None:
    select = SelectSettings.model_validate({"itm_threshold": 0.9, "per_origin": {"synthetic": {"itm_threshold": 0.95}}})
    assert texts().below("itm", select).tolist() == [False, True, True, True]


def test_places_are_per_image_and_those_left_out_come_last() -> None:
    everyone = np.ones(4, dtype=bool)
    assert rank(texts(), "itm", everyone).tolist() == [0, 1, 2, 0]
    assert rank(texts(), "itc", everyone).tolist() == [1, 0, 2, 0]
    assert rank(texts(), "itc", np.array([True, False, True, True])).tolist() == [0, 2, 1, 0]


def test_the_first_case_that_is_true_gives_the_reason() -> None:
    first, second = np.array([True, False, False]), np.array([True, True, False])
    assert first_true((first, "a"), (second, "b")).tolist() == ["a", "b", None]
