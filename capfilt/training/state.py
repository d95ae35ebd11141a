"""Checkpoints for exact resume: everything that the next step depends on, in one file that rank 0 writes.

Neither the feed (its order and noise are functions of seed, epoch and step) nor torch's generators (`noise_seed`: every
forward pass starts them anew) need state. What remains is weights, momentum copies, queue, optimiser, the position,
and what the log and the alarm have gathered since their last word.
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
from capfilt.training.recipe import Recipe

logger = logging.getLogger(__name__)

KEEP = 2
"""Checkpoints kept; the last may be damaged by a dying disk, the one before serves then."""

_FREE: Any = {
    "out": True,
    "data": {"workers"},
    "run": {"ranks", "threads", "device", "checkpointing", "compile", "checkpoint_every", "log_every"},
}
"""What may change between a kill and a resume."""


@dataclass
class Position:
    """Where training stands: `step` optimiser steps are done; `best` is the best validation value so far."""

    step: int = 0
    best: float | None = None


def noise_seed(seed: int, step: int, part: int, rank: int) -> int:
    """Seed of torch's generators (dropout, hard negatives) for forward pass `part` of a step on a rank."""
    digest = hashlib.sha256(f"{seed}:{step}:{part}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def fingerprint(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that a run's numbers depend on."""
    dump: dict[str, Any] = recipe.model_dump(mode="json", exclude=_FREE)
    return dump


def write(folder: Path, state: dict[str, Any], step: int) -> Path:
    """`step-00001234.pt`, complete or absent: written beside, synced, renamed; older ones beyond KEEP are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    for old in [*found(folder)[:-KEEP], *folder.glob("step-*.part")]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def read_last(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The newest readable checkpoint, None where there is none.

    Raises:
        CheckpointError: it was made by another recipe, or none can be read.
    """
    paths = found(folder)
    for path in reversed(paths):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            theirs = state["recipe"]
        except Exception as error:  # torch raises a dozen unrelated types on damaged files
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.warning("%s: damaged (%s); trying the one before", path, reason)
            continue
        _compare(path, theirs, fingerprint(recipe))
        return state
    if paths:
        raise CheckpointError(f"{folder}: none of {len(paths)} checkpoints can be read; delete it to start anew")
    return None


def _compare(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    a, b = dict(_flat(theirs)), dict(_flat(ours))
    changed = [
        f"{key} {a.get(key)!r} -> {b.get(key)!r}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    ]
    if changed:
        told = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise CheckpointError(
            f"{path}: made by another recipe ({told}); undo the change, use another `out`, "
            f"or delete {path.parent} to start anew"
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict | list):
        yield key, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _flat(inner, f"{key}.{name}" if key else str(name))
