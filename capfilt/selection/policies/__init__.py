"""The policies that `select.policy` names, one file each. To add one, write its file and name it in `POLICIES`.

Its name and settings are in `capfilt.config.pipeline.SelectSettings`; its reasons in `capfilt.selection.reasons`.
"""

from capfilt.config.pipeline import SelectSettings
from capfilt.selection.policies.base import Policy
from capfilt.selection.policies.both import Both
from capfilt.selection.policies.calibrated import Calibrated
from capfilt.selection.policies.either import Either
from capfilt.selection.policies.itc_threshold import ItcThreshold
from capfilt.selection.policies.itm_threshold import ItmThreshold
from capfilt.selection.policies.keep_all import KeepAll
from capfilt.selection.policies.top_k import TopK

POLICIES: tuple[Policy, ...] = (
    ItmThreshold(),
    Calibrated(),
    ItcThreshold(),
    Both(),
    Either(),
    TopK(),
    KeepAll(),
)

JUDGED = tuple(dict.fromkeys([*(reason for policy in POLICIES for reason in policy.reasons), "over_max_texts"]))
"""Reasons that are verdicts on a score; `max_texts_per_image` follows every policy and gives the last one."""


def policy_of(select: SelectSettings) -> Policy:
    """Return the policy that the settings name."""
    return next(policy for policy in POLICIES if policy.name == select.policy)


def threshold_reasons() -> tuple[str, ...]:
    """Return the reasons of the policies that have thresholds: verdicts that another threshold can change."""
    with_thresholds = [policy for policy in POLICIES if policy.thresholds(SelectSettings())]
    return tuple(dict.fromkeys(reason for policy in with_thresholds for reason in policy.reasons))
