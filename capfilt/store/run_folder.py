"""A run's folder from outside: its run.json, and the `RunLayout` by which finished stages are read again.

runs/<name>/run.json            resolved pipeline, versions, fingerprints, counts, seconds
runs/<name>/dataset.json        fingerprint and file hashes of what `emit` wrote last
runs/<name>/<stage>/            shards; fingerprint.json says what made them
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capfilt.config.load import validate
from capfilt.errors import DataError, RunError
from capfilt.store.layout import RunLayout, ShardSpec
from capfilt.store.shards import write_atomic


@dataclass(frozen=True)
class Run:
    """A run that was started: its layout as it was last planned, and run.json's facts."""

    layout: RunLayout
    facts: dict[str, Any]


def open_run(path: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        DataError: no folder, no run.json in it, or one that is damaged.
    """
    folder = Path(path).resolve()
    file = folder / "run.json"
    if not file.is_file():
        meant = f"{path}/round-1" if (folder / "loop.json").is_file() else "runs/demo"
        raise DataError(f"{path}: no run.json there; give the folder of a run, such as {meant}")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        units = tuple(ShardSpec(*unit) for unit in facts["units"])
        layout = RunLayout(validate(facts["pipeline"], str(file)), folder, units, facts["folders"], facts["digests"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); `capfilt run` writes it again") from error
    return Run(layout, facts)


def write_facts(run: Path, facts: dict[str, Any]) -> None:
    """run.json, whole."""
    write_atomic(run / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON mapping, or None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """One writer a run. Raises RunError while another process works on it; the lock dies with its process."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{run}: another process is working on this run; wait for it, or take another --out"
            ) from None
        yield
