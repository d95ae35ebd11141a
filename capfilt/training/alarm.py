"""What stops or warns a training run: losses and gradients that are not finite, and an ITM head that has collapsed."""

import logging
import math
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from capfilt.errors import TrainingError

logger = logging.getLogger(__name__)

COLLAPSE = math.log(3) - 2 / 3 * math.log(2)
"""0.6365: the entropy of ITM's 1 : 2 prior, where a collapsed ITM head stays (BLIP issues 51, 152, 200)."""
COLLAPSE_STEPS = 300
_NEAR = 0.003
_MEMORY = 0.02


@dataclass
class CollapseAlarm:
    """Warns once when, after warm-up, the running mean of ITM has been at its prior's entropy for COLLAPSE_STEPS."""

    weight: float
    warmup: int = 0
    mean: float = COLLAPSE
    stuck: int = 0
    told: bool = False

    def see(self, step: int, terms: dict[str, float]) -> None:
        """The terms of optimiser step `step`."""
        if not self.weight or "itm" not in terms:
            return
        self.mean += (terms["itm"] / self.weight - self.mean) * _MEMORY
        near = abs(self.mean - COLLAPSE) < _NEAR
        self.stuck = self.stuck + 1 if near and step >= self.warmup else 0
        if self.stuck >= COLLAPSE_STEPS and not self.told:
            self.told = True
            logger.warning(
                "ITM has stayed at %.4f, the entropy of its 1 : 2 prior, for %d steps: the head has collapsed. A lower "
                "lr or more warm-up, a smaller queue_size, or starting from a checkpoint helps (BLIP issue 51)",
                self.mean,
                self.stuck,
            )


def check_losses(means: dict[str, float], mine: dict[str, Tensor], uids: list[str], world: int) -> None:
    """Stop all ranks together if the mean over ranks of any loss is not finite.

    A rank that stopped alone would leave the others waiting for it in the next collective operation.

    Raises:
        TrainingError: naming the losses, and the rows of the ranks where they arose.
    """
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if not bad:
        return
    rows: list[list[str]] = [uids if any(not term.isfinite() for term in mine.values()) else []]
    if world > 1:
        mine_rows, rows = rows[0], [[] for _ in range(world)]
        dist.all_gather_object(rows, mine_rows)
    named = ", ".join(uid for each in rows for uid in each)
    raise TrainingError(f"the loss {', '.join(bad)} is not finite; rows of this batch: {named}. {_ADVICE}")


def check_gradient(norm: float, uids: list[str]) -> None:
    """Stop if the gradient's norm, the same on every rank, is not finite.

    Raises:
        TrainingError: naming this rank's rows.
    """
    if not math.isfinite(norm):
        raise TrainingError(f"the gradient is not finite; rows of this step: {', '.join(uids)}. {_ADVICE}")


_ADVICE = "Lower optim.lr, set optim.clip, or leave out the row; the last checkpoint is kept"
