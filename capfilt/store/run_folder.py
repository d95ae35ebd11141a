"""A run's folder: run.json, which is read once, and the lock that allows one writer.

runs/<name>/run.json            resolved pipeline, versions, fingerprints, counts, seconds
runs/<name>/retry.json          how often `capfilt retry` was called
runs/<name>/<stage>/            shards; fingerprint.json says what determines them
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from capfilt.config.load import validate
from capfilt.errors import DataError, RunError
from capfilt.store.layout import RunLayout, ShardSpec
from capfilt.store.shards import write_atomic


class RunFolder:
    """A run's folder, which need not exist yet; run.json is read once, on the first use of `facts`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Contents of run.json; empty if it is missing or damaged."""
        return read_json(self.path / "run.json") or {}

    def write_facts(self, facts: dict[str, Any]) -> None:
        """Replace run.json."""
        write_atomic(self.path / "run.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        self.facts = facts

    @cached_property
    def retries(self) -> int:
        """How often `capfilt retry` was called."""
        return int((read_json(self.path / "retry.json") or {}).get("times", 0))

    def add_retry(self) -> None:
        """Count one more retry."""
        write_atomic(self.path / "retry.json", json.dumps({"times": self.retries + 1}))
        del self.retries

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock, which allows one writer and ends with its process.

        Raises:
            RunError: another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path}: another process is working on this run; wait for it, or take another --out"
                ) from None
            yield


@dataclass(frozen=True)
class Run:
    """A run that was started: its layout as it was last planned, and the facts of run.json."""

    layout: RunLayout
    facts: dict[str, Any]
    """Contents of run.json."""
    folder: RunFolder


def open_run(path: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        DataError: no folder, no run.json in it, or one that is damaged.
        ConfigError: its pipeline has a key or value that this version of capfilt does not allow.
    """
    folder = RunFolder(path)
    file = folder.path / "run.json"
    if not file.is_file():
        example = f"{path}/round-1" if (folder.path / "loop.json").is_file() else "runs/demo"
        raise DataError(f"{path}: no run.json there; give the folder of a run, such as {example}")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        shards = tuple(ShardSpec(*spec) for spec in facts["units"])
        pipeline = validate(facts["pipeline"], str(file))
        layout = RunLayout(
            pipeline, folder.path, shards, facts["folders"], facts["digests"], facts.get("fingerprints", {})
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); `capfilt run` writes it again") from error
    folder.facts = facts
    return Run(layout, facts, folder)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file is missing, damaged or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
