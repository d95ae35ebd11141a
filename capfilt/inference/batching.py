"""Choose the number of images per batch, run a batch in several threads, and make batches smaller if memory runs out.

A CPU worker with several cores (`resources.STAGE.num_cpus`) divides a batch among as many lanes. A lane is a thread
that has one torch thread. This reaches 0.84 of the cores' peak in vision; one lane whose products use a team of threads
reaches 0.79 (BLIP-base, two cores, AVX512). The results have the bits of a worker with one core.

On a CPU in fp32 or int8 the results have the same bits with every batch size. On a GPU the last bits of sums depend on
it: set `batch_size` to a number if two machines must write the same bytes.
"""

import time
from collections import ChainMap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from io import BytesIO
from itertools import pairwise
from typing import TypeVar

import torch
from PIL import Image

from capfilt.config.pipeline import ModelSettings, Pipeline, Resources
from capfilt.errors import ConfigError
from capfilt.inference.rows import Record, Row
from capfilt.models.protocols import System

ON_CPU = 48
"""Largest batch per lane that "auto" chooses on a CPU. Captioning takes 154 ms per image in batches of 16, 123 in
batches of 48 and 122 in batches of 64 (BLIP-base, two threads). Vision and scoring take the same time in all."""
FIRST, LAST = 8, 512
"""Smallest and largest size that are tried on a GPU, by doubling."""
MIN_SPEEDUP = 1.05
"""Least speed-up per image that justifies doubling the batch."""
BLANK = 384
"""Side of the images that the probe uses, in pixels."""

T = TypeVar("T")
U = TypeVar("U")
Answer = Callable[[list[Row]], dict[int, Record]]
"""Runs the systems: rows with a prepared image -> the position of each row -> its record."""


def lanes_of(pipeline: Pipeline, stage: str, system: System) -> int:
    """Return the number of lanes: the whole cores of a worker of this stage on a CPU, 1 on a GPU."""
    given = pipeline.resources.get(stage, Resources()).num_cpus
    return max(int(given), 1) if system.device.type == "cpu" else 1


def batch_size(use: ModelSettings, systems: Sequence[System], answer: Answer, lanes: int = 1) -> int:
    """Return the number of images per batch.

    "auto" takes an eighth of the free memory on a CPU, at most `ON_CPU` images per lane. On a GPU it times batches of
    blank images (`probe`).

    Args:
        use: settings with the batch size, a number or "auto".
        systems: those that answer, on one device.
        answer: runs them.
        lanes: as `lanes_of` returns it.
    """
    if use.batch_size != "auto":
        return use.batch_size
    if systems[0].device.type == "cpu":
        each = sum(system.bytes_per_image for system in systems)
        return max(1, min(ON_CPU * lanes, _available() // 8 // each))

    def seconds(images: int) -> float:
        rows = [_blank(position, systems) for position in range(images)]
        answer(rows)  # kernels are chosen and graphs captured the first time
        torch.cuda.synchronize(systems[0].device)
        started = time.perf_counter()
        answer(rows)
        torch.cuda.synchronize(systems[0].device)
        return time.perf_counter() - started

    return probe(seconds, systems)


def probe(seconds: Callable[[int], float], systems: Sequence[System] = ()) -> int:
    """Double the batch size as long as this speeds up each image by `MIN_SPEEDUP` and fits in memory.

    Args:
        seconds: number of images -> time of one batch, in seconds.
        systems: those whose caches are freed after a size that did not fit.

    Returns:
        The last size that was worth it, `FIRST` to `LAST`.
    """
    size = FIRST
    try:
        spent = seconds(size)
        while size < LAST and 2 * spent >= MIN_SPEEDUP * (more := seconds(2 * size)):
            size, spent = 2 * size, more
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        for system in systems:
            system.release()
    return size


class AdaptiveBatcher:
    """Runs systems on batches, in pieces that fit in memory. If memory runs out, this and later pieces are halved."""

    def __init__(self, answer: Answer, lanes: int = 1, systems: Sequence[System] = ()) -> None:
        """Create the lanes.

        Args:
            answer: runs the systems.
            lanes: as `lanes_of` returns it.
            systems: those whose caches are freed when memory runs out.
        """
        self._answer, self._size, self._systems = answer, LAST * lanes, systems
        self._lanes = ThreadLanes(lanes)

    def __call__(self, batch: list[Row]) -> dict[int, Record]:
        """Run the systems on the rows with status ok, and drop the images of these rows.

        Returns:
            Position of each such row -> its record.

        Raises:
            ConfigError: memory does not suffice for one image.
        """
        asked = [row for row in batch if row.status == "ok"]
        found: dict[int, Record] = {}
        while asked:
            piece = asked[: self._size]
            if (answers := self._try(piece)) is None:
                self._size = len(piece) // 2
                continue
            found |= answers
            for row in piece:
                row.prepared.clear()
            asked = asked[len(piece) :]
        return found

    def _try(self, piece: list[Row]) -> dict[int, Record] | None:
        try:
            return dict(ChainMap(*self._lanes.map(self._answer, piece)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(piece) == 1:
                raise ConfigError(
                    f"memory ran out on one image ({piece[0].uid}): {str(error).splitlines()[0]}; free some, ask for "
                    "fewer captions (caption.samples), or take a smaller model or precision"
                ) from error
        for system in self._systems:
            system.release()
        return None


class ThreadLanes:
    """Threads of one torch thread each. They run in parallel because torch releases Python's lock in its products."""

    def __init__(self, count: int) -> None:
        """Start `count` threads; with 1, the calling thread is used."""
        self.count = count
        self._pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (1,)) if count > 1 else None

    def map(self, call: Callable[[list[T]], U], items: list[T]) -> list[U]:
        """Divide the items into one part of neighbours per lane, and call `call` on the parts in parallel.

        With several lanes even a single item is computed in one of them, because the bits may depend on the number of
        torch threads. If a lane raises, its exception is raised after all lanes have ended.

        Returns:
            The results in the order of the parts.
        """
        if self._pool is None or not items:
            return [call(items)]
        bounds = [i * len(items) // self.count for i in range(self.count + 1)]
        parts = [items[start:stop] for start, stop in pairwise(bounds) if start < stop]
        futures = [self._pool.submit(call, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: torch's on a GPU or on a CPU, or Python's."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _blank(position: int, systems: Sequence[System]) -> Row:
    """Return a row with a blank image and a text of usual length, for the probe."""
    image = Image.new("RGB", (BLANK, BLANK))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    row = Row(position, f"{position:016x}", "web", "a photo of a thing on a table " * 2, None, True, "ok")
    row.prepared = [system.prepare(image, buffer.getvalue()) for system in systems]
    return row


def _available() -> int:
    """Return the available memory in bytes; 8 GiB where /proc/meminfo does not exist (other systems than Linux)."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 << 30
