"""Further measurements: several captions per image, two processes, growth with the size of the work, the pipeline."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch

from benchmarks.throughput_engine import Engine, captioner, drawing, judge
from benchmarks.throughput_inputs import Inputs, make_inputs
from capfilt.config.load import validate
from capfilt.engine.board import Done
from capfilt.engine.plan import make_plan
from capfilt.engine.ray_pool import run_ray
from capfilt.store.run_folder import RunFolder

_engine: Engine | None = None


def alternated(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median of each call over the rounds; every other round runs them in the opposite order."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 == 0 else list(calls)[::-1]:
            found[name].append(calls[name]())
    return {name: median(values) for name, values in found.items()}


def five_captions(inputs: Inputs, new_tokens: int, images: int, rounds: int) -> float:
    """Return the captioner's time for 5 captions per image divided by that for 1, vision included."""
    blip = captioner(inputs, new_tokens)
    out = inputs.shard.with_name("n5.parquet")

    def seconds(samples: int) -> float:
        engine = Engine(blip, blip, samples=samples, judged=False)
        return engine.run(inputs.shard, out, images)

    seconds(1)
    spent = alternated({"one": lambda: seconds(1), "five": lambda: seconds(5)}, rounds)
    return spent["five"] / spent["one"]


def _start(inputs: Inputs, new_tokens: int) -> None:
    global _engine
    torch.set_num_threads(1)
    _engine = Engine(captioner(inputs, new_tokens), judge(inputs))


def _work(inputs: Inputs, images: int, first: int) -> float:
    assert _engine is not None
    return _engine.run(inputs.shard, inputs.shard.with_name(f"actor-{first}.parquet"), images, first)


class Actors:
    """Processes with one torch thread and both models each, like the pipeline's workers."""

    def __init__(self, inputs: Inputs, new_tokens: int, count: int) -> None:
        self._inputs = inputs
        spawn = multiprocessing.get_context("spawn")
        self._stack = ExitStack()
        self._pools = [
            self._stack.enter_context(ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(inputs, new_tokens)))
            for _ in range(count)
        ]
        self.seconds(1, count)

    def seconds(self, images: int, count: int) -> float:
        """Return the seconds in which each of `count` processes handles `images` images of its own."""
        started = time.perf_counter()
        half = len(self._inputs.uids) // len(self._pools)
        futures = [pool.submit(_work, self._inputs, images, i * half) for i, pool in enumerate(self._pools[:count])]
        for future in futures:
            future.result()
        return time.perf_counter() - started

    def close(self) -> None:
        """End the processes."""
        self._stack.close()


def two_actors(inputs: Inputs, new_tokens: int, images: int, rounds: int) -> dict[str, float]:
    """Return images/s of one process with one thread, and of two at the same time."""
    actors = Actors(inputs, new_tokens, 2)
    spent = alternated({str(n): lambda n=n: actors.seconds(images, n) for n in (1, 2)}, rounds)
    actors.close()
    return {
        "one_actor": images / spent["1"],
        "two_actors": 2 * images / spent["2"],
        "two_actors_over_one": 2 * spent["1"] / spent["2"],
    }


def growth(
    folder: Path, shape: str, inputs: Inputs, new_tokens: int, images: int, rounds: int
) -> dict[str, list[list[float]]]:
    """Return [value, images/s] for fp32, two towers and all cores, as one dimension of the work grows.

    The speeds are medians over the rounds.
    """
    reader, filter_ = captioner(inputs, new_tokens), judge(inputs)
    base = Engine(reader, filter_)
    out = folder / "growth.parquet"

    def seconds(engine: Engine, data: Inputs = inputs, some: int = images) -> Callable[[], float]:
        return lambda: engine.run(data.shard, out, some) / some

    def speeds(calls: dict[int, Callable[[], float]]) -> list[list[float]]:
        found = alternated({str(value): call for value, call in calls.items()}, rounds)
        return [[int(value), round(1 / spent, 4)] for value, spent in found.items()]

    base.run(inputs.shard, out, 1)
    lanes = base.lanes.count  # each point has at least one whole batch per lane
    sizes = [size for size in (1, 4, 16) if size * lanes <= len(inputs.uids)]
    by_side = {}
    for side in (reader.image_size * 7 // 12, reader.image_size):
        side -= side % reader.config.vision.patch_size
        data = make_inputs(folder / f"size-{side}", shape, images, side)
        engine = Engine(captioner(data, new_tokens), judge(data))
        engine.run(data.shard, out, 1)
        by_side[side] = seconds(engine, data)
    return {
        "batch_size": speeds(
            {size: seconds(replace(base, batch_size=size), some=max(size * lanes, images)) for size in sizes}
        ),
        "texts": speeds({texts + 1: seconds(replace(base, web_texts=texts)) for texts in (0, 1, 3, 7)}),
        "new_tokens": speeds({n: seconds(replace(base, captioner=drawing(reader, n))) for n in (10, 20, 40)}),
        "image_size": speeds(by_side),
    }


def pipeline(folder: Path, shape: str, images: int, shards: int, new_tokens: int) -> dict[str, Any]:
    """Compare `capfilt run` on Ray with the bare models, both in two workers of one thread if there are two cores.

    The order is bare, run, run, bare, because the processor's clock drifts. `pipeline_seconds` is the sum over all
    workers at the pace of their later shards, because the first shard of each loads modules and models.
    """
    inputs = make_inputs(folder, shape, images)
    (folder / "in").mkdir()
    table = pq.read_table(inputs.shard).rename_columns(["key", "text", "image"])
    pq.write_table(table, folder / "in/web.parquet")
    settings = _settings(folder, inputs, images // shards, new_tokens)
    workers = min(torch.get_num_threads(), 2)
    actors = Actors(inputs, new_tokens, workers)
    walls: list[float] = []

    def bare() -> float:
        return actors.seconds(images // workers, workers) * workers

    def run() -> float:
        started = time.perf_counter()
        seconds = _seconds_of_shards(settings, folder / f"run-{len(walls)}")
        walls.append(time.perf_counter() - started)
        return sum(median(sorted(some)[: max(shards - workers, 1)]) * shards for some in seconds.values())

    spent = alternated({"bare": bare, "pipeline": run}, 2)
    actors.close()
    return {
        "images": images,
        "shards": shards,
        "model": shape,
        "bare_seconds": spent["bare"],
        "pipeline_seconds": spent["pipeline"],
        "pipeline_over_bare": spent["pipeline"] / spent["bare"],
        "wall_seconds": median(walls),
    }


def _seconds_of_shards(settings: dict[str, Any], folder: Path) -> dict[str, list[float]]:
    """Run the pipeline into `folder`; return the seconds of each shard of the stages with a model."""
    spent: dict[str, list[float]] = {}

    def note(done: Done) -> None:
        if "caption" in done.stage or "score" in done.stage:
            spent.setdefault(done.stage, []).append(done.seconds)

    run_ray(make_plan(validate(settings, "bench"), RunFolder(folder)), note)
    return spent


def _settings(folder: Path, inputs: Inputs, rows: int, new_tokens: int) -> dict[str, Any]:
    decoding = captioner(inputs, new_tokens).decoding.model_dump(exclude_unset=True)
    return {
        "name": "bench",
        "sources": [{"type": "parquet", "path": str(folder / "in")}],
        "ingest": {"rows_per_shard": rows},
        "caption": {"model": str(inputs.captioner), "decoding": decoding, "device": "cpu"},
        "score": {"model": str(inputs.filter), "device": "cpu"},
        "dedup": {"exact": False, "perceptual": None, "semantic": None, "url_text": False},
    }
