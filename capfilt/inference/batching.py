"""How many images a model is given at once: as the pipeline says, or as many as pay; fewer where memory runs out.

A CPU worker with several cores (`resources.STAGE.num_cpus`) shares a batch out to as many lanes, each a thread with one
torch thread, in place of a team of threads for each product: 0.84 of the cores' product peak in vision against 0.79,
and the bits of a worker with one core (BLIP-base, two cores, AVX512).

None of this moves a bit on a CPU in fp32 or int8. On a GPU sums differ in their last bits with the batch; give a number
there where two machines are to give the same bytes.
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
from capfilt.errors import CapfiltError, ConfigError
from capfilt.inference.rows import Record, Row
from capfilt.models.protocols import System

ON_CPU = 48
"""Captioning an image takes 154 ms in batches of 16, 123 in batches of 48 and 122 in batches of 64 (BLIP-base, two
threads); vision goes image by image, and scoring does not care."""
FIRST, LAST = 8, 512
"""Sizes tried on a GPU, by doubling."""
MIN_SPEEDUP = 1.05
"""Least speed-up per image that justifies doubling the batch."""
BLANK = 384
"""Side of the image that is timed, pixels."""

T = TypeVar("T")
U = TypeVar("U")
Answer = Callable[[list[Row]], dict[int, Record]]
"""Rows with a prepared image -> position -> what the systems say."""


def lanes_of(pipeline: Pipeline, stage: str, system: System) -> int:
    """The cores that a worker of the stage was given, whole ones; 1 on a GPU."""
    given = pipeline.resources.get(stage, Resources()).num_cpus
    return max(int(given), 1) if system.device.type == "cpu" else 1


def batch_size(use: ModelSettings, systems: Sequence[System], answer: Answer, lanes: int = 1) -> int:
    """The pipeline's number; for "auto" what memory allows on a CPU, and what a short probe finds best on a GPU."""
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
    """The size from which on doubling gains less than `MIN_SPEEDUP`, or does not fit; `seconds(n)` is that of n images.

    What did not fit leaves caches behind, which the systems are asked to free.
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
    """Asks systems about batches, in pieces that fit: halved when memory runs out, and so from then on."""

    def __init__(self, answer: Answer, lanes: int = 1, systems: Sequence[System] = ()) -> None:
        """`systems`: those that answer; they are asked to free their caches when memory runs out."""
        self._answer, self._size, self._systems = answer, LAST * lanes, systems
        self._lanes = ThreadLanes(lanes)

    def __call__(self, batch: list[Row]) -> dict[int, Record]:
        """Answers for the rows with status ok, whose images are dropped. Raises ConfigError: not one image fits."""
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
            if isinstance(error, CapfiltError) or not is_out_of_memory(error):
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
    """Threads of one torch thread each. torch lets go of Python's lock inside its products, so they work at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (1,)) if count > 1 else None

    def map(self, call: Callable[[list[T]], U], items: list[T]) -> list[U]:
        """`call` of as many neighbouring parts of the items as there are lanes, in order; here where there is one lane.

        A single item, too, has one thread: bits may depend on how many there are. What a lane raises
        is raised when all have ended.
        """
        if self._pool is None or not items:
            return [call(items)]
        bounds = [i * len(items) // self.count for i in range(self.count + 1)]
        parts = [items[start:stop] for start, stop in pairwise(bounds) if start < stop]
        futures = [self._pool.submit(call, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]


def is_out_of_memory(error: BaseException) -> bool:
    """torch's for a GPU, its RuntimeError for a CPU, Python's own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _blank(position: int, systems: Sequence[System]) -> Row:
    """A row of usual size, to be timed."""
    image = Image.new("RGB", (BLANK, BLANK))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    row = Row(position, f"{position:016x}", "web", "a photo of a thing on a table " * 2, None, True, "ok")
    row.prepared = [system.prepare(image, buffer.getvalue()) for system in systems]
    return row


def _available() -> int:
    """Bytes of memory that could be had now; without Linux's word for it, those of 8 GiB."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 << 30
