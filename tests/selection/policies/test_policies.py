"""What holds of every policy, and that the list, the settings and the reasons agree."""

from typing import Any, get_args

import pytest

from capfilt.config.load import validate
from capfilt.config.pipeline import PolicyName, SelectSettings
from capfilt.errors import ConfigError
from capfilt.selection.policies import JUDGED, POLICIES, policy_of, threshold_reasons
from capfilt.selection.policies.base import Policy
from capfilt.selection.reasons import REASONS

EVERY = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)


def test_the_list_holds_every_name_of_the_settings_once() -> None:
    names = [policy.name for policy in POLICIES]
    assert names == list(get_args(PolicyName))
    assert [policy_of(SelectSettings(policy=name)).name for name in names] == names


@EVERY
def test_every_reason_is_documented_and_a_verdict(policy: Policy) -> None:
    assert set(policy.reasons) <= set(REASONS)
    assert set(policy.reasons) <= set(JUDGED) < set(REASONS)


def test_verdicts_upon_a_score_and_those_of_a_threshold() -> None:
    thresholds = {"below_itm_threshold", "below_itc_threshold", "below_both"}
    assert set(threshold_reasons()) == thresholds
    assert set(JUDGED) == thresholds | {"not_top_k", "over_max_texts"}


@EVERY
def test_thresholds_are_on_scores_that_the_policy_needs(policy: Policy) -> None:
    for rank_by in ("itm", "itc"):
        select = SelectSettings.model_validate({"rank_by": rank_by, "policy": policy.name})
        assert set(policy.thresholds(select)) <= set(policy.needs(select))


@EVERY
def test_the_pipeline_file_asks_for_scores_and_human_rows_where_the_policy_does(policy: Policy) -> None:
    raw: dict[str, Any] = {"sources": [{"type": "parquet", "path": "w"}], "select": {"policy": policy.name}}
    raw |= {"dedup": {"semantic": None}}
    if policy.needs(SelectSettings(policy=policy.name)):
        with pytest.raises(ConfigError, match=f"{policy.name} (needs scores|takes its threshold from human pairs)"):
            validate(raw, "test")
    else:
        validate(raw, "test")
    raw |= {"score": {"model": "tiny/filter"}}
    if policy.calibrated:
        with pytest.raises(ConfigError, match="takes its threshold from human pairs"):
            validate(raw, "test")
    else:
        validate(raw, "test")


@pytest.mark.parametrize(
    ("select", "sentence"),
    [
        ({}, "A text is kept if its ITM is at least 0.5."),
        ({"policy": "itc_threshold", "itc_threshold": 0.3}, "A text is kept if its ITC is at least 0.3."),
        ({"policy": "both"}, "A text is kept if its ITM is at least 0.5 and its ITC at least 0.25."),
        ({"policy": "either"}, "A text is kept if its ITM is at least 0.5 or its ITC at least 0.25."),
        ({"policy": "top_k", "top_k": 2, "rank_by": "itc"}, "The best 2 texts per image by ITC are kept."),
        ({"policy": "top_k"}, "The best text per image by ITM is kept."),
        ({"policy": "keep_all"}, "Every text is kept that is no duplicate and was not refused before."),
    ],
)
def test_a_policy_describes_itself_with_its_settings(select: dict[str, Any], sentence: str) -> None:
    settings = SelectSettings.model_validate(select)
    assert policy_of(settings).describe(settings) == sentence


def test_the_calibrated_policy_names_its_target() -> None:
    select = SelectSettings(policy="calibrated", target_precision=0.95)
    assert "precision of 0.95" in policy_of(select).describe(select)
