"""Beside the contenders: several captions an image, two processes, growth with the work's size, the whole pipeline."""

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


def alternated(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of each over the rounds; every other round runs them in the opposite order."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            found[name].append(ways[name]())
    return {name: median(values) for name, values in found.items()}


def five_captions(inputs: Inputs, new_tokens: int, images: int, rounds: int) -> float:
    """The captioner's time for 5 captions an image over that for 1, vision and all."""
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
    """Processes of one torch thread, each with both models, as the pipeline's workers."""

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
        """Until each of `count` of them has done `images` of its own."""
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
    """Images/s of one process of one thread and of two at once."""
    actors = Actors(inputs, new_tokens, 2)
    ways = {str(count): lambda count=count: actors.seconds(images, count) for count in (1, 2)}
    spent = alternated(ways, rounds)
    actors.close()
    return {
        "one_actor": images / spent["1"],
        "two_actors": 2 * images / spent["2"],
        "two_actors_over_one": 2 * spent["1"] / spent["2"],
    }


def growth(
    folder: Path, shape: str, inputs: Inputs, new_tokens: int, images: int, rounds: int
) -> dict[str, list[list[float]]]:
    """[value, images/s] of fp32, two towers, all cores, as one measure of the work grows; medians over the rounds."""
    reader, filter_ = captioner(inputs, new_tokens), judge(inputs)
    base = Engine(reader, filter_)
    out = folder / "growth.parquet"

    def seconds(engine: Engine, data: Inputs = inputs, some: int = images) -> Callable[[], float]:
        return lambda: engine.run(data.shard, out, some) / some

    def speeds(ways: dict[int, Callable[[], float]]) -> list[list[float]]:
        found = alternated({str(value): way for value, way in ways.items()}, rounds)
        return [[int(value), round(1 / spent, 4)] for value, spent in found.items()]

    base.run(inputs.shard, out, 1)
    lanes = base.lanes.count  # a point's images give every one of them a whole batch
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
    """`capfilt run` on Ray against the same models bare, both in two workers of one thread where there are two cores.

    Bare, run, run, bare, since the processor's clock drifts. `pipeline_seconds`: of all workers, at the pace of their
    later shards; the first of each, the slowest, loads modules and models.
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
    """A run into `folder`; what each shard of the stages with a model took."""
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
