"""calibrate: the threshold of `select.policy: calibrated`, measured once on the human pairs of all shards.

Left out under every other policy. Reads stored columns only; no model runs.
"""

from typing import Any, ClassVar

from capfilt.config.pipeline import Pipeline
from capfilt.selection.calibration import calibration_file, compute_calibration
from capfilt.selection.policies import policy_of
from capfilt.stages.base import StageSpec, Task
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CALIBRATION, CAPTIONS, DEDUP, NEAR, PAIRS, SCORES


def settings(pipeline: Pipeline) -> Any:
    """Return the settings that the threshold depends on; None if the policy is not calibrated."""
    if not policy_of(pipeline.select).calibrated:
        return None
    return pipeline.select.model_dump(mode="json", include={"target_precision", "noise_prior"})


def finished(layout: RunLayout, fingerprint: str) -> bool:
    """Return whether the threshold was written."""
    return calibration_file(layout).is_file()


SPEC = StageSpec(
    output=CALIBRATION,
    version=1,
    settings=settings,
    inputs=(PAIRS, NEAR, CAPTIONS, SCORES, DEDUP),
    tasks="one",
    finished=finished,
    seconds_per_row=1e-5,
    reruns_in_select=True,
)


class CalibrateStage:
    """Writes `calibrate-<fp>/calibration.json`."""

    spec: ClassVar[StageSpec] = SPEC

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, task: Task) -> None:
        """Measure the threshold; write nothing in a dry run. Raises as `compute_calibration` does."""
        found = compute_calibration(self._layout)
        if not task.rows.dry:
            found.write(calibration_file(self._layout))
