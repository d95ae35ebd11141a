"""`select.policy: calibrated`: a threshold on ITM that the human-annotated part alone decides.

Every human text beside its own image is a matched pair, and beside another human image (`mismatch_itm`, which score
stores) a mismatched one. Kept at a threshold t are a share r(t) of the matched and f(t) of the mismatched. Of texts of
which a share p is noise (`select.noise_prior`) those that are kept then match with precision

    (1 - p) r(t) / ((1 - p) r(t) + p f(t))

and the threshold is the least stored score at which that reaches `select.target_precision`: the highest recall that
the target allows. Both shares are those of human texts; web texts and captions are worded otherwise, and a filter that
was fine-tuned on the same human rows finds them easier than new ones, so the precision is a setting, not a promise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capfilt.config.pipeline import SelectSettings
from capfilt.errors import ConfigError
from capfilt.selection.policies import policy_of
from capfilt.store.arrays import Floats, equal
from capfilt.store.layout import RunLayout
from capfilt.store.schema import PAIRS, SCORES
from capfilt.store.shards import table
from capfilt.store.sidecars import floats, objects, refused_rows, sidecar

LEAST = 30
"""Matched and mismatched pairs, each; with 30, a share is known to about 0.18 either way."""


@dataclass(frozen=True)
class Calibration:
    """The threshold, and what it does to the human part."""

    threshold: float
    """Least ITM, a float32."""
    precision: float
    """At `noise_prior`."""
    recall: float
    """Share of the matched pairs that are kept."""
    false_alarms: float
    """Share of the mismatched pairs that are kept."""
    matched: int
    mismatched: int

    @property
    def sentence(self) -> str:
        """For the terminal and the report."""
        return (
            f"calibrated on {self.matched:,} human texts and {self.mismatched:,} mismatched ones: ITM >= "
            f"{self.threshold:.4f} keeps {self.recall:.1%} and {self.false_alarms:.1%} of them, "
            f"precision {self.precision:.3f}"
        )


def calibrate(layout: RunLayout) -> Calibration | None:
    """From the stored scores of all shards; None under another policy.

    Raises:
        ConfigError: too few human rows, or no threshold reaches the target. DataError: a damaged shard.
    """
    select = layout.pipeline.select
    if not policy_of(select).calibrated:
        return None
    parts = [_scores(layout, shard) for shard in range(len(layout.shards))]
    matched, mismatched = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    if min(len(matched), len(mismatched)) < LEAST:
        raise ConfigError(
            f"select.policy: calibrated needs {LEAST} judged human texts and as many mismatched ones; found "
            f"{len(matched)} and {len(mismatched)}: add human pairs, or take itm_threshold"
        )
    return choose(matched, mismatched, select.target_precision, select.noise_prior)


def choose(matched: Floats, mismatched: Floats, target: float, prior: float) -> Calibration:
    """The least score at which the precision reaches `target`.

    Args:
        matched: (P,) ITM.
        mismatched: (N,) ITM.
        target: precision, in (0, 1).
        prior: share of noise among the texts to judge, in (0, 1).

    Raises:
        ConfigError: no score reaches it.
    """
    thresholds = np.unique(np.concatenate([matched, mismatched]))
    recall, alarms = _kept(matched, thresholds), _kept(mismatched, thresholds)
    precision = (1 - prior) * recall / ((1 - prior) * recall + prior * alarms)
    good = np.flatnonzero(precision >= target - 1e-12)
    if not len(good):
        raise ConfigError(
            f"select.target_precision: {target} is reached at no threshold, at most {precision.max():.3f} with "
            f"noise_prior {prior}: lower it, or take a better filter"
        )
    i = good[0]
    at, reached, right, wrong = (float(values[i]) for values in (thresholds, precision, recall, alarms))
    return Calibration(at, reached, right, wrong, len(matched), len(mismatched))


def effective(layout: RunLayout, found: Calibration | None) -> SelectSettings:
    """The pipeline's `select` with the threshold that was found."""
    select = layout.pipeline.select
    return select if found is None else select.model_copy(update={"itm_threshold": found.threshold})


def _kept(scores: Floats, thresholds: Floats) -> NDArray[np.float64]:
    """Share of scores at or above each threshold."""
    return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)


def _scores(layout: RunLayout, shard: int) -> tuple[Floats, Floats]:
    """ITM of a shard's human texts beside their images, and beside another's."""
    rows = table(layout.shard(PAIRS, shard), ["uid", "role", "status", "reason"])
    human = equal(objects(rows["role"]), "human") & equal(refused_rows(layout, shard, rows), None)
    score = sidecar(layout, SCORES, shard, ["web_itm", "mismatch_itm"], rows["uid"])
    own, other = (floats(score[name])[human] for name in ("web_itm", "mismatch_itm"))
    return own[~np.isnan(own)], other[~np.isnan(other)]
