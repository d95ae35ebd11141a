"""Scheduling cost per finished task, for runs of 100 to 100,000 shards: what the driver does between two tasks.

    python -m benchmarks.scheduler           # results: benchmarks/results/scheduler.json

The plan has the stages of the demo (captions and scores fused); nothing is computed. Tasks are handed out to 16 workers
and finished in a shuffled order, as a cluster finishes them. Medians of 3.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from capfilt.config.load import load_pipeline
from capfilt.engine.board import TaskBoard
from capfilt.engine.steps import Plan, Step
from capfilt.stages.catalog import STAGES
from capfilt.store.layout import RunLayout, ShardSpec

ROOT = Path(__file__).parents[1]
WORKERS = 16


def plan_of(shards: int) -> Plan:
    """Return a plan of the demo's stages in which everything is left to do."""
    specs = tuple(ShardSpec("web", f"{i:05d}.parquet", 0, 10_000) for i in range(shards))
    stages = [stage for stage in STAGES if stage.spec.settings(load_pipeline("demo")) is not None]
    folders = {stage.spec.name: stage.spec.output.folder_name("0") for stage in stages}
    layout = RunLayout(load_pipeline("demo"), ROOT / "runs" / "nothing", specs, folders)
    todo = {stage: tuple(range(shards)) if stage.spec.tasks == "per shard" else (0,) for stage in stages}
    return Plan(layout, tuple(Step(stage, "", {}, todo[stage], "new") for stage in stages))


def drive(plan: Plan) -> tuple[int, float, float]:
    """Hand out and finish every task; return tasks, seconds to set up the board, seconds to do the rest."""
    started = time.perf_counter()
    board = TaskBoard(plan)
    ready, rng, tasks = time.perf_counter(), random.Random(0), 0
    running: list[tuple[str, int]] = []
    while not board.finished:
        for name in board.groups:
            while len(running) < WORKERS and board.ready(name):
                running.append((name, board.take(name)))
        board.finish(*running.pop(rng.randrange(len(running))))
        tasks += 1
    return tasks, ready - started, time.perf_counter() - ready


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scheduler.json")
    args = parser.parse_args()
    result: list[dict[str, Any]] = []
    for shards in args.shards:
        runs = [drive(plan_of(shards)) for _ in range(3)]
        tasks, setup, spent = (statistics.median(column) for column in zip(*runs, strict=True))
        result.append(
            {
                "shards": shards,
                "tasks": tasks,
                "setup_ms": round(1e3 * setup, 2),
                "us_per_task": round(1e6 * spent / tasks, 2),
            }
        )
        print(json.dumps(result[-1]))
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
