"""A policy is refused before the run if the judge does not write the scores that it reads."""

from typing import Any

import pytest

from capfilt.config.pipeline import SelectSettings
from capfilt.errors import ConfigError
from capfilt.selection.check import check_policy

ONLY_ITC = frozenset({"itc"})
BOTH = frozenset({"itm", "itc"})


def select(**changes: Any) -> SelectSettings:
    return SelectSettings.model_validate(changes)


@pytest.mark.parametrize("policy", ["itm_threshold", "calibrated", "both", "either", "top_k"])
def test_a_policy_that_reads_itm_is_refused_with_a_judge_of_itc(policy: str) -> None:
    check_policy(select(policy=policy), BOTH)
    with pytest.raises(ConfigError) as caught:
        check_policy(select(policy=policy), ONLY_ITC)
    assert str(caught.value) == (
        f"select.policy: {policy} needs itm, but the judge of `score` writes itc; take another judge, or one of these "
        "policies: itc_threshold, keep_all"
    )


@pytest.mark.parametrize(
    "settings", [{"policy": "itc_threshold"}, {"policy": "top_k", "rank_by": "itc"}, {"policy": "keep_all"}]
)
def test_a_policy_that_reads_itc_alone_takes_a_judge_of_itc(settings: dict[str, Any]) -> None:
    check_policy(select(**settings), ONLY_ITC)


def test_without_a_judge_only_keep_all_passes() -> None:
    check_policy(select(policy="keep_all", max_texts_per_image=1), frozenset())
    with pytest.raises(ConfigError, match=r"both needs itm and itc, but the judge of `score` writes no score"):
        check_policy(select(policy="both"), frozenset())


def test_the_order_of_an_image_s_texts_needs_its_score_too() -> None:
    limited = {"policy": "itc_threshold", "max_texts_per_image": 2}
    with pytest.raises(ConfigError, match=r"select\.rank_by: .* ranks by itm.* writes itc; set select\.rank_by=itc"):
        check_policy(select(**limited), ONLY_ITC)
    check_policy(select(**limited, rank_by="itc"), ONLY_ITC)
