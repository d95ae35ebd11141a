"""Stages that write a line a row instead of a model's output, and die or fail as their job's name says.

The pipeline's name carries the orders: `die-SHARD-ROW` ends the process at that row of that shard in `upper`,
`once-SHARD` kills the first worker of that shard, `full-SHARD` finds no room on the disk, `slow` takes its time.
A Ray actor imports this module: it imports no torch, so that actors start fast.
"""

import json
import os
import signal
import time
from typing import ClassVar

from capfilt.stages.base import Stage, StageSpec, Task
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CAPTIONS, DATASET, PAIRS
from capfilt.store.shards import write_atomic

ROWS = 8


class Base:
    """Common to the three."""

    spec: ClassVar[StageSpec]

    def __init__(self, layout: RunLayout) -> None:
        self.layout = layout

    def setup(self) -> None:
        (self.layout.run / f"{self.spec.name}-{os.getpid()}.pid").touch()


class Lines(Base):
    """Makes the first files."""

    spec = StageSpec(output=PAIRS, version=1, settings=lambda pipeline: {})

    def process(self, task: Task) -> None:
        path = self.layout.shard(PAIRS, task.index)
        write_atomic(path.with_suffix(".json"), json.dumps({"rows": ROWS, "sha256": "", "status": {}}))
        write_atomic(path, "\n".join(f"row {task.index} {i}" for i in range(ROWS)))


class Upper(Base):
    """Reads one file, writes one."""

    spec = StageSpec(output=CAPTIONS, version=1, settings=lambda pipeline: {}, inputs=(PAIRS,))

    def process(self, task: Task) -> None:
        shard, quarantined = task.index, task.rows.quarantined
        order, *numbers = self.layout.pipeline.name.split("-")
        rows = self.layout.shard(PAIRS, shard).read_text().splitlines()
        if order == "slow":
            time.sleep(0.4)
        if order == "once" and numbers == [str(shard)] and not (self.layout.run / "died").exists():
            (self.layout.run / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "full" and numbers == [str(shard)]:
            raise OSError(28, "No space left on device")
        for i, _ in task.rows.select(rows):
            if order == "die" and str(shard) == numbers[0] and str(i) in numbers[1:] and i not in quarantined:
                os.kill(os.getpid(), signal.SIGKILL)
        if not task.rows.dry:
            text = "\n".join("null" if i in quarantined else row.upper() for i, row in enumerate(rows))
            write_atomic(self.layout.shard(CAPTIONS, shard), text)


class Joined(Base):
    """Reads all files, writes one."""

    spec = StageSpec(output=DATASET, version=1, settings=lambda pipeline: {}, inputs=(CAPTIONS,), tasks="one")

    def process(self, task: Task) -> None:
        parts = [self.layout.shard(CAPTIONS, i).read_text() for i in range(len(self.layout.shards))]
        write_atomic(self.layout.run / "joined", "\n".join(parts))


FAKES: tuple[type[Stage], ...] = (Lines, Upper, Joined)
