"""Checkpoints for exact resume: everything that the next step depends on, in one file that rank 0 writes.

The data loader needs no state, because its order and noise are functions of seed, epoch and step. Torch's generators
need none either, because every forward pass seeds them (`noise_seed`). A checkpoint contains the objective's weights
and buffers, the optimiser, the position, the values since the last log line, and the state of the loss monitor.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from capfilt.errors import CheckpointError
from capfilt.training.recipe_sections import Recipe

logger = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints kept. If a failing disk has damaged the last one, the one before it is used."""

_FREE: Any = {
    "out": True,
    "data": {"workers"},
    "run": {"ranks", "threads", "device", "checkpointing", "compile", "checkpoint_every", "log_every"},
}
"""What may change between a kill and a resume."""


@dataclass
class Position:
    """How far a training run is."""

    step: int = 0
    """Optimiser steps that are done."""
    best: float | None = None
    """Best validation value so far; None before the first validation."""


def noise_seed(seed: int, step: int, number: int, rank: int) -> int:
    """Seed of torch's generators (dropout, hard negatives) for forward pass `number` of a step on a rank."""
    digest = hashlib.sha256(f"{seed}:{step}:{number}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def fingerprint(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that a run's numbers depend on."""
    dump: dict[str, Any] = recipe.model_dump(mode="json", exclude=_FREE)
    return dump


def write(folder: Path, state: dict[str, Any], step: int) -> Path:
    """Write `step-00001234.pt` atomically (temporary name, fsync, rename) and remove all but the newest KEEP."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    for old in [*checkpoints(folder)[:-KEEP], *folder.glob("step-*.part")]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def read_last(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Read the newest checkpoint that is not damaged; None if the folder has no checkpoint.

    Raises:
        CheckpointError: it was written with another recipe, or none can be read.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            its_recipe = state["recipe"]
        except Exception as error:  # torch raises a dozen unrelated types on damaged files
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.warning("%s: damaged (%s); trying the one before it", path, reason)
            continue
        _check_same_recipe(path, its_recipe, fingerprint(recipe))
        return state
    if paths:
        raise CheckpointError(f"{folder}: none of {len(paths)} checkpoints can be read; delete it to start again")
    return None


def _check_same_recipe(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    a, b = dict(_flat(saved)), dict(_flat(current))
    changed = [
        f"{key} {a.get(key)!r} -> {b.get(key)!r}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    ]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise CheckpointError(
            f"{path}: written with another recipe ({shown}); undo the change, use another `out`, "
            f"or delete {path.parent} to start again"
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict | list):
        yield key, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _flat(inner, f"{key}.{name}" if key else str(name))
