"""The pipeline's own costs: memory as shards grow in number, and what Ray adds to the plain loop.

    python -m benchmarks.pipeline memory     # 200 small shards: resident memory of driver and workers along the run
    python -m benchmarks.pipeline overhead   # 20 shards, one worker a stage: Ray against --local, medians of pairs

Both run the real pipeline on the bundled sample and weights, repeated under new keys. Results: benchmarks/results/.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from capfilt.engine import Done, run_local
from capfilt.pipeline import Pipeline, validate
from capfilt.plan import make_plan
from capfilt.pool import run_ray
from capfilt.steps import Plan

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data/sample/web/00000.parquet"


def source(folder: Path, shards: int, rows: int) -> Pipeline:
    """A pipeline over `shards` files of `rows` rows each, the sample's pictures again and again under new keys."""
    table = pq.read_table(SAMPLE)
    (folder / "in").mkdir(parents=True)
    for shard in range(shards):
        part = table.take([(shard * rows + i) % len(table) for i in range(rows)])
        keys = pa.array([f"{shard}-{i}" for i in range(rows)])
        part = part.set_column(part.schema.get_field_index("key"), "key", keys)
        pq.write_table(part, folder / f"in/{shard:05d}.parquet")
    one = {"num_cpus": 1, "max_actors": 1}
    raw = {
        "name": "bench",
        "sources": [{"type": "parquet", "path": str(folder / "in")}],
        "ingest": {"rows_per_shard": rows},
        "caption": {"model": "tiny/captioner"},
        "score": {"model": "tiny/filter"},
        "dedup": {"exact": False, "perceptual": None, "semantic": None, "url_text": False},
        "resources": dict.fromkeys(("ingest", "caption", "score", "select"), one),
    }
    return validate(raw, "bench")


class Watch:
    """Resident memory of this process and its descendants, sampled, by the shards finished so far."""

    def __init__(self) -> None:
        self.done, self.points, self._on = 0, list[dict[str, float]](), True
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def finished(self, done: Done) -> None:
        self.done += done.stage in ("ingest", "caption", "score")

    def _sample(self) -> None:
        me = psutil.Process()
        while self._on:
            workers = [rss(p) for p in me.children(recursive=True) if "ray::Worker" in name(p)]
            point = {"shards": self.done, "driver": rss(me), "largest_worker": max(workers, default=0.0)}
            self.points.append(point)
            time.sleep(0.5)

    def stop(self) -> list[dict[str, float]]:
        self._on = False
        self._thread.join()
        return self.points


def rss(process: psutil.Process) -> float:
    """MiB; 0 for one that has gone."""
    try:
        return round(float(process.memory_info().rss) / 2**20, 1)
    except psutil.Error:
        return 0.0


def name(process: psutil.Process) -> str:
    """Command line's first word."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def memory(shards: int, rows: int) -> dict[str, Any]:
    """Largest resident memory in each tenth of the run."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(source(Path(folder), shards, rows), Path(folder) / "run")
        watch = Watch()
        run_ray(plan, watch.finished)
        points = watch.stop()
    total = max(point["shards"] for point in points)
    curve = []
    for tenth in range(10):
        part = [p for p in points if tenth <= p["shards"] * 10 / (total + 1) < tenth + 1]
        if part:
            curve.append({key: max(p[key] for p in part) for key in ("shards", "driver", "largest_worker")})
    return {"shards": shards, "rows_a_shard": rows, "unit": "MiB resident", "curve": curve}


def seconds(plan: Plan, how: Any) -> dict[str, float]:
    """Median seconds a shard of the stages that run models, the first two shards (start, loading) left out."""
    spent: dict[str, list[float]] = {"ingest": [], "caption": [], "score": []}

    def note(done: Done) -> None:
        if done.stage in spent:
            spent[done.stage].append(done.seconds)

    how(plan, note)
    return {stage: statistics.median(values[2:]) for stage, values in spent.items()}


def overhead(shards: int, rows: int, pairs: int) -> dict[str, Any]:
    """Ray / local of a shard's seconds, `pairs` times in turn; 1 torch thread, one worker a stage."""
    ratios, found = [], []
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            pipeline = source(Path(folder), shards, rows)
            local = seconds(make_plan(pipeline, Path(folder) / "local"), run_local)
            remote = seconds(make_plan(pipeline, Path(folder) / "ray"), run_ray)
        found.append({"local": local, "ray": remote})
        ratios.append(sum(remote.values()) / sum(local.values()))
    ray.shutdown()
    return {
        "shards": shards, "rows_a_shard": rows, "pairs": found, "ratios": ratios, "ratio": statistics.median(ratios)
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "overhead"])
    parser.add_argument("--shards", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.what == "memory":
        result = memory(args.shards or 200, args.rows or 8)
    else:
        result = overhead(args.shards or 20, args.rows or 24, args.pairs)
    out = ROOT / f"benchmarks/results/pipeline-{args.what}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
