"""Measure the pipeline's own costs: memory over many shards, the overhead of Ray, and the time of `select`.

    python -m benchmarks.pipeline memory     # 200 small shards: resident memory of driver and workers along the run
    python -m benchmarks.pipeline overhead   # 20 shards, one worker per stage: Ray against --local, medians of pairs
    python -m benchmarks.pipeline select     # 100,000 rows: `capfilt select` on stored scores

The first two run the real pipeline on the bundled sample and weights, repeated under new keys; the third invents
captions and scores for rows with an image of 100 bytes. Results: benchmarks/results/.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from capfilt import open_run, run, select
from capfilt.config.emit import EmitPairs
from capfilt.config.load import validate
from capfilt.config.pipeline import Pipeline
from capfilt.engine.board import Done
from capfilt.engine.local import run_local
from capfilt.engine.plan import make_plan
from capfilt.engine.ray_pool import run_ray
from capfilt.engine.steps import Plan
from capfilt.store.run_folder import RunFolder
from capfilt.store.schema import CAPTIONS, DEDUP, PAIRS, arrow, score_columns
from capfilt.store.shards import ShardWriter, table

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data/sample/web/00000.parquet"


def source(folder: Path, shards: int, rows: int) -> Pipeline:
    """Build a pipeline over `shards` files of `rows` rows each: the sample's images, repeated under new keys."""
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
    """Samples the resident memory of this process and its workers, with the number of finished shards."""

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
    """Return resident memory in MiB; 0 if the process has ended."""
    try:
        return round(float(process.memory_info().rss) / 2**20, 1)
    except psutil.Error:
        return 0.0


def name(process: psutil.Process) -> str:
    """Return the first word of the command line; "" if the process has ended."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def memory(shards: int, rows: int) -> dict[str, Any]:
    """Return the largest resident memory in each tenth of the run."""
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(source(Path(folder), shards, rows), RunFolder(Path(folder) / "run"))
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


def seconds(plan: Plan, execute: Any) -> dict[str, float]:
    """Return median seconds per shard of each stage, without the first two shards (start, loading)."""
    spent: dict[str, list[float]] = defaultdict(list)

    def note(done: Done) -> None:
        spent[done.stage].append(done.seconds)

    execute(plan, note)
    return {stage: statistics.median(values[2:]) for stage, values in spent.items() if len(values) > 2}


def overhead(shards: int, rows: int, pairs: int) -> dict[str, Any]:
    """Compare seconds per shard on Ray and local, `pairs` times in turn; 1 torch thread, one worker per stage."""
    ratios, found = [], []
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            pipeline = source(Path(folder), shards, rows)
            local = seconds(make_plan(pipeline, RunFolder(Path(folder) / "local")), run_local)
            remote = seconds(make_plan(pipeline, RunFolder(Path(folder) / "ray")), run_ray)
        found.append({"local": local, "ray": remote})
        ratios.append(sum(remote.values()) / sum(local.values()))
    ray.shutdown()
    return {
        "shards": shards, "rows_a_shard": rows, "pairs": found, "ratios": ratios, "ratio": statistics.median(ratios)
    }  # fmt: skip


def stored_scores(folder: Path, shards: int, rows: int) -> Path:
    """Write a finished run with invented scores; return its folder."""
    pipeline = source(folder, 1, 4).model_copy(update={"emit": [EmitPairs(format="pairs")]})
    run(pipeline, out=folder / "run", local=True)
    layout = open_run(folder / "run").layout
    rng = random.Random(0)
    dim = pq.read_schema(layout.shard("score", 0)).field("image_embedding").type.list_size
    first = {stage: table(layout.shard(stage, 0)).to_pylist()[0] for stage in ("ingest", "caption", "dedup")}
    schemas = {"ingest": PAIRS, "caption": CAPTIONS, "dedup": DEDUP, "score": score_columns(dim)}
    first["ingest"]["image"] = {"bytes": b"x" * 100, "path": None}
    first["score"] = {"status": "ok", "image_embedding": [0.0] * dim}
    for shard in range(shards):
        records: dict[str, list[dict[str, Any]]] = {stage: [] for stage in first}
        for i in range(rows):
            uid = f"{shard * rows + i:016x}"
            scores = {"web_itc": rng.random(), "web_itm": rng.random()}
            scores |= {"caption_itc": [rng.random()], "caption_itm": [rng.random()]}
            for stage, row in first.items():
                records[stage].append({**row, "uid": uid, **(scores if stage == "score" else {})})
        for stage, lines in records.items():
            with ShardWriter(layout.shard(stage, shard), arrow(schemas[stage])) as writer:
                writer.write(lines)
    facts = open_run(folder / "run").facts
    facts["units"] = [["in", f"{i:05d}.parquet", 0, rows] for i in range(shards)]
    RunFolder(layout.run).write_facts(facts)
    return layout.run


def select_time(shards: int, rows: int, times: int) -> dict[str, Any]:
    """Measure seconds of `select` (decide, emit pairs, count, report), each time with another threshold."""
    with tempfile.TemporaryDirectory() as folder:
        run_folder = stored_scores(Path(folder), shards, rows)
        spent = []
        for k in range(times):
            started = time.monotonic()
            kept = select(run_folder, [f"select.itm_threshold={0.55 + k / 20}"]).accounting.texts_kept
            spent.append(round(time.monotonic() - started, 2))
    return {"rows": shards * rows, "seconds": spent, "median": statistics.median(spent), "texts_kept_last": kept}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "overhead", "select"])
    parser.add_argument("--shards", type=int)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.what == "memory":
        result = memory(args.shards or 200, args.rows or 8)
    elif args.what == "select":
        result = select_time(args.shards or 10, args.rows or 10_000, args.pairs)
    else:
        result = overhead(args.shards or 20, args.rows or 24, args.pairs)
    out = ROOT / f"benchmarks/results/pipeline-{args.what}.json"
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
