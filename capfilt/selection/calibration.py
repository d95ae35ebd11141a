"""`select.policy: calibrated`: a threshold on ITM that only the human pairs decide.

Every human text beside its own image is a matched pair, and beside another human image (`mismatch_itm`, which `score`
stores) a mismatched pair. A threshold t keeps a share r(t) of the matched and f(t) of the mismatched pairs. If a share
p of the texts to judge is noise (`select.noise_prior`), the texts that are kept match with a precision of

    (1 - p) r(t) / ((1 - p) r(t) + p f(t))

The threshold is the least stored score at which this reaches `select.target_precision`, and so the highest recall that
the target allows. Both shares are measured on human texts. Web texts and captions are worded differently, and a filter
that was fine-tuned on the same human rows separates them more easily than new rows, so the precision is an estimate.

The stage `calibrate` computes the result once, from all shards, and writes it as a small file. `select`, the report and
the summary read it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capfilt.config.pipeline import SelectSettings
from capfilt.errors import ConfigError, DataError
from capfilt.store.arrays import Floats, equal
from capfilt.store.fingerprint import canonical
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CALIBRATION, PAIRS, SCORES
from capfilt.store.shards import table, write_atomic
from capfilt.store.sidecars import floats, objects, refused_rows, sidecar

LEAST = 30
"""Least number of matched pairs, and of mismatched pairs. With 30, a share is known to about 0.18 either way."""


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to the human pairs."""

    threshold: float
    """Least ITM, a float32 value."""
    precision: float
    """Estimated share of the kept texts that match, at `noise_prior`."""
    recall: float
    """Share of the matched pairs that are kept."""
    false_alarms: float
    """Share of the mismatched pairs that are kept."""
    matched: int
    """Number of matched pairs."""
    mismatched: int
    """Number of mismatched pairs."""

    @property
    def sentence(self) -> str:
        """The result in words, for the terminal and the report."""
        return (
            f"calibrated on {self.matched:,} human texts and {self.mismatched:,} mismatched ones: ITM >= "
            f"{self.threshold:.4f} keeps {self.recall:.1%} and {self.false_alarms:.1%} of them, "
            f"precision {self.precision:.3f}"
        )

    def write(self, path: Path) -> None:
        """Write the result as JSON, in one atomic step. Numbers are read back equal to the bit."""
        write_atomic(path, canonical(asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Read a written result. Raises DataError if the file is missing or damaged."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); remove it if it is there, and run again") from error


def compute_calibration(layout: RunLayout) -> Calibration:
    """Measure the threshold on the stored scores of all shards.

    Raises:
        ConfigError: too few human rows, or no threshold reaches the target.
        DataError: a damaged shard.
    """
    select = layout.pipeline.select
    parts = [_human_scores(layout, shard) for shard in range(len(layout.shards))]
    matched, mismatched = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    if min(len(matched), len(mismatched)) < LEAST:
        raise ConfigError(
            f"select.policy: calibrated needs {LEAST} judged human texts and as many mismatched ones; found "
            f"{len(matched)} and {len(mismatched)}: add human pairs, or take itm_threshold"
        )
    return choose(matched, mismatched, select.target_precision, select.noise_prior)


def calibration_file(layout: RunLayout) -> Path:
    """Return the path of the file that the stage `calibrate` writes."""
    return layout.folder(CALIBRATION) / "calibration.json"


def read_calibration(layout: RunLayout) -> Calibration | None:
    """Read the run's calibration; None if its policy has none. Raises DataError if the file is missing or damaged."""
    return Calibration.read(calibration_file(layout)) if layout.has(CALIBRATION) else None


def effective(select: SelectSettings, found: Calibration | None) -> SelectSettings:
    """Return the settings with the measured threshold as `itm_threshold`, or unchanged if none was measured."""
    return select if found is None else select.model_copy(update={"itm_threshold": found.threshold})


def choose(matched: Floats, mismatched: Floats, target: float, prior: float) -> Calibration:
    """Find the least score at which the precision reaches `target`.

    Args:
        matched: (P,) ITM, 0 .. 1.
        mismatched: (N,) ITM, 0 .. 1.
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


def _kept(scores: Floats, thresholds: Floats) -> NDArray[np.float64]:
    """Return the share of the scores that are at or above each threshold."""
    return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)


def _human_scores(layout: RunLayout, shard: int) -> tuple[Floats, Floats]:
    """ITM of a shard's human texts beside their own images, and of the images beside another human text."""
    rows = table(layout.shard(PAIRS, shard), ["uid", "role", "status", "reason"])
    human = equal(objects(rows["role"]), "human") & equal(refused_rows(layout, shard, rows), None)
    score = sidecar(layout, SCORES, shard, ["web_itm", "mismatch_itm"], rows["uid"])
    own, other = (floats(score[name])[human] for name in ("web_itm", "mismatch_itm"))
    return own[~np.isnan(own)], other[~np.isnan(other)]
