"""What a training run tells: a progress bar (plain lines when there is no terminal), TensorBoard events, JSON lines."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Line = dict[str, float]
PLAIN_SECONDS = 15.0
"""Seconds between lines where no terminal shows a bar."""


@dataclass
class Window:
    """Terms since the last line; part of a checkpoint, so that a resumed run's first line is an unbroken run's."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, terms: dict[str, float]) -> None:
        """One step's terms."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Means over the steps, which are forgotten."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Log:
    """Writes `log.jsonl` and `events/` under `out`; a context manager.

    What a killed run logged after the checkpoint from which this one goes on is removed: each step is there once.
    """

    def __init__(
        self,
        out: Path,
        total: int,
        done: int,
        on: bool,
        watch: Callable[[Line], None] | None,
        window: Window | None = None,
    ) -> None:
        """`total` steps, of which `done` are; `on`: this rank writes; `watch` is called with each line."""
        self.out, self.total, self.done, self.on, self.watch = out, total, done, on, watch
        self.window = window or Window()
        self.console = Console(stderr=True)
        self.started = self.said = time.monotonic()

    def __enter__(self) -> "Log":
        if self.on:
            from tensorboardX import SummaryWriter

            self.out.mkdir(parents=True, exist_ok=True)
            path = self.out / "log.jsonl"
            truncate(path, self.done)
            self.lines = path.open("a")
            self.events: Any = SummaryWriter(str(self.out / "events"), purge_step=self.done + 1)
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            shown = TextColumn("{task.description}")
            self.bar = Progress(shown, *columns, console=self.console, disable=not sys.stderr.isatty())
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

    def step(self, step: int, epoch: int, terms: dict[str, float], batch: int, every: int) -> None:
        """Count a step of `batch` pairs; every `every` steps write the mean of the terms since the last line."""
        self.window.add(terms)
        if step % every and step != self.total:
            return
        means = self.window.means()
        rate = (step - self.done) * batch / (time.monotonic() - self.started)
        self.write({"step": step, "epoch": epoch, **means, "pairs_s": rate})
        if self.on:
            self._show(step, means, rate)

    def write(self, line: Line) -> None:
        """One line to every sink."""
        if self.on:
            self.lines.write(json.dumps(line) + "\n")
            self.lines.flush()
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self.events.add_scalar(name, value, int(line["step"]))
        if self.watch is not None:
            self.watch(line)

    def _show(self, step: int, means: dict[str, float], rate: float) -> None:
        told = " ".join(f"{name} {means[name]:.3f}" for name in ("loss", "itc", "itm", "lm") if name in means)
        self.bar.update(self.task, completed=step, description=f"{told} {rate:.0f} pairs/s")
        now = time.monotonic()
        if self.bar.disable and (now - self.said > PLAIN_SECONDS or step == self.total):
            self.said = now
            left = (self.total - step) * (now - self.started) / max(1, step - self.done) / 60
            self.console.print(
                f"step {step}/{self.total} {told} {rate:.0f} pairs/s, {left:.1f} min left",
                highlight=False,
                soft_wrap=True,
            )


def truncate(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a last line that a kill cut short goes too."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
    part = path.with_suffix(".part")
    part.write_text("".join(line + "\n" for line in kept))
    part.replace(path)


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
