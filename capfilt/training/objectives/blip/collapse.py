"""Warn about an ITM head that has collapsed."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

COLLAPSE = math.log(3) - 2 / 3 * math.log(2)
"""0.6365: entropy of ITM's 1 : 2 prior, where the loss of a collapsed ITM head stays (BLIP issues 51, 152, 200)."""
COLLAPSE_STEPS = 300
"""Successive steps at COLLAPSE before the warning."""
_NEAR = 0.003
"""Distance from COLLAPSE that counts as collapsed."""
_MEMORY = 0.02
"""Weight of the newest loss in the running mean."""


@dataclass
class CollapseMonitor:
    """Warns once if, after warm-up, the running mean of the ITM loss has stayed at COLLAPSE for COLLAPSE_STEPS.

    Attributes:
        weight: of ITM in the objective; 0 turns the monitor off.
        warmup: steps of warm-up, which do not count.
        mean: running mean of the unweighted ITM loss.
        stuck: successive steps at COLLAPSE.
        warned: whether the warning was given.
    """

    weight: float
    warmup: int = 0
    mean: float = COLLAPSE
    stuck: int = 0
    warned: bool = False

    def update(self, step: int, terms: Mapping[str, float]) -> None:
        """Take the mean terms of optimiser step `step` (from 1)."""
        if not self.weight or "itm" not in terms:
            return
        self.mean += (terms["itm"] / self.weight - self.mean) * _MEMORY
        near = abs(self.mean - COLLAPSE) < _NEAR
        self.stuck = self.stuck + 1 if near and step >= self.warmup else 0
        if self.stuck >= COLLAPSE_STEPS and not self.warned:
            self.warned = True
            logger.warning(
                "ITM has stayed at %.4f, the entropy of its 1 : 2 prior, for %d steps: the head has collapsed. A lower "
                "lr or more warm-up, a smaller queue_size, or starting from a checkpoint helps (BLIP issue 51)",
                self.mean,
                self.stuck,
            )

    def state(self) -> dict[str, Any]:
        """The state that a resumed run continues with."""
        return {"mean": self.mean, "stuck": self.stuck, "warned": self.warned}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave; without `warned` (earlier versions) the warning may come again."""
        self.mean, self.stuck = state["mean"], state["stuck"]
        self.warned = state.get("warned", False)
