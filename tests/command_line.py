"""The real command line in processes of its own, and the content of the run that it wrote."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

WAIT = 200
"""Seconds."""


def line(*args: object) -> list[str]:
    """Return the command line of `capfilt ARGS` under this interpreter."""
    return [sys.executable, "-m", "capfilt.cli", *map(str, args)]


def start(*args: object, **environment: str) -> subprocess.Popen[str]:
    """Start `capfilt ARGS` as the leader of its own process group; stdout and stderr are one pipe."""
    return subprocess.Popen(
        line(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def finish(*args: object, timeout: float = 300) -> tuple[int, str]:
    """Run `capfilt ARGS` to its end. Return the exit code, and what it printed."""
    started = start(*args)
    printed, _ = started.communicate(timeout=timeout)
    return started.returncode, printed


def wait_for(condition: Callable[[], bool], started: subprocess.Popen[str]) -> None:
    """Wait until the condition is true while the process runs; fail if it ends before, or takes too long."""
    until = time.monotonic() + WAIT
    while not condition():
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.005)


def content(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of the data set and of every shard."""
    files = [*folder.glob("*/*.parquet"), *(p for p in (folder / "dataset").rglob("*") if p.is_file())]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
