"""Stop a training run whose losses or gradients are not finite."""

import math

import torch.distributed as dist
from torch import Tensor

from capfilt.errors import TrainingError

_ADVICE = "Lower optim.lr, set optim.clip, or leave out the row; the last checkpoint is kept"


def check_losses(means: dict[str, float], mine: dict[str, Tensor], uids: list[str], world: int) -> None:
    """Stop all ranks together if the mean over ranks of any loss is not finite.

    A rank that stopped alone would leave the others waiting for it in the next collective operation.

    Args:
        means: term -> mean over ranks, the same on every rank.
        mine: term -> this rank's scalar.
        uids: this rank's rows.
        world: number of ranks.

    Raises:
        TrainingError: naming the terms, and the rows of the ranks on which a term is not finite.
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
