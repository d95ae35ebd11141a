"""Report a training run: a progress bar (plain lines without a terminal), TensorBoard events, JSON lines."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Line = dict[str, float]
PLAIN_SECONDS = 15.0
"""Minimum seconds between plain lines, which replace the bar without a terminal."""


@dataclass
class Window:
    """Sums of the values since the last log line. Part of a checkpoint: a resumed run's first line equals an unbroken
    run's."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, float]) -> None:
        """Add the values of one step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Return the means over the steps, and start again."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Log:
    """Writes `log.jsonl` and `events/` under `out`, as a context manager.

    Lines that a killed run wrote after the checkpoint are removed, so that each step occurs once.
    """

    def __init__(
        self,
        out: Path,
        total: int,
        done: int,
        on: bool,
        watch: Callable[[Line], None] | None,
        window: Window | None = None,
        shown: Sequence[str] = ("loss",),
    ) -> None:
        """Prepare a log; entering it opens the files.

        Args:
            out: folder of the training run.
            total: steps of the whole run.
            done: steps that are already done.
            on: whether this rank writes.
            watch: called with each line.
            window: values since the last line of a resumed run.
            shown: names of the values that the progress bar shows.
        """
        self.out, self.total, self.done, self.on, self.watch = out, total, done, on, watch
        self.window, self.shown = window or Window(), shown
        self.console = Console(stderr=True)
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> "Log":
        if self.on:
            from tensorboardX import SummaryWriter

            self.out.mkdir(parents=True, exist_ok=True)
            path = self.out / "log.jsonl"
            truncate(path, self.done)
            self.lines = path.open("a")
            self.events: Any = SummaryWriter(str(self.out / "events"), purge_step=self.done + 1)
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            description = TextColumn("{task.description}")
            self.bar = Progress(description, *columns, console=self.console, disable=not sys.stderr.isatty())
            self.task = self.bar.add_task("training", total=self.total, completed=self.done)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.on:
            self.bar.stop()
            self.lines.close()
            self.events.close()

    def step(self, step: int, epoch: int, values: dict[str, float], batch: int, every: int) -> None:
        """Count a step; every `every` steps and at the end, write the means of the values since the last line.

        Args:
            step: number of the step, from 1.
            epoch: its epoch, from 0.
            values: loss terms and other numbers of the step.
            batch: pairs per step.
            every: steps between lines.
        """
        self.window.add(values)
        if step % every and step != self.total:
            return
        means = self.window.means()
        rate = (step - self.done) * batch / (time.monotonic() - self.started)
        self.write({"step": step, "epoch": epoch, **means, "pairs_s": rate})
        if self.on:
            self._show(step, means, rate)

    def write(self, line: Line) -> None:
        """Write one line to `log.jsonl`, to the TensorBoard events and to `watch`."""
        if self.on:
            self.lines.write(json.dumps(line) + "\n")
            self.lines.flush()
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self.events.add_scalar(name, value, int(line["step"]))
        if self.watch is not None:
            self.watch(line)

    def _show(self, step: int, means: dict[str, float], rate: float) -> None:
        losses = " ".join(f"{name} {means[name]:.3f}" for name in self.shown if name in means)
        self.bar.update(self.task, completed=step, description=f"{losses} {rate:.0f} pairs/s")
        now = time.monotonic()
        if self.bar.disable and (now - self.last_line > PLAIN_SECONDS or step == self.total):
            self.last_line = now
            left = (self.total - step) * (now - self.started) / max(1, step - self.done) / 60
            self.console.print(
                f"step {step}/{self.total} {losses} {rate:.0f} pairs/s, {left:.1f} min left",
                highlight=False,
                soft_wrap=True,
            )


def truncate(path: Path, step: int) -> None:
    """Keep the lines of a `log.jsonl` up to `step`; a last line that a kill cut short is removed too."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
    partial = path.with_suffix(".part")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(path)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
