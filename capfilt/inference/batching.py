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
from itertools import pairwise
from typing import Literal, TypeVar

import torch

from capfilt.config.pipeline import ModelSettings, Pipeline, Resources
from capfilt.errors import CapfiltError, ConfigError
from capfilt.inference.rows import Record, Row
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.static import release_all

ON_CPU = 48
"""Captioning an image takes 154 ms in batches of 16, 123 in batches of 48 and 122 in batches of 64 (BLIP-base, two
threads); vision goes image by image, and scoring does not care."""
FIRST, LAST = 8, 512
"""Sizes tried on a GPU, by doubling."""
PAYS = 1.05
"""Twice as many images must be so much faster an image."""

T = TypeVar("T")
U = TypeVar("U")
Answer = Callable[[list[Row]], dict[int, Record]]
"""Rows with pixels -> position -> what the model says."""


def lanes_of(pipeline: Pipeline, stage: Literal["caption", "score"], blip: Blip) -> int:
    """The cores that a worker of the stage was given, whole ones; 1 on a GPU."""
    given = pipeline.resources.get(stage, Resources()).num_cpus
    return max(int(given), 1) if blip.device.type == "cpu" else 1


def batch_size(use: ModelSettings, models: Sequence[Blip], answer: Answer, lanes: int = 1) -> int:
    """The pipeline's number; for "auto" what memory allows on a CPU, and what a short probe finds best on a GPU."""
    if use.batch_size != "auto":
        return use.batch_size
    if models[0].device.type == "cpu":
        return max(1, min(ON_CPU * lanes, _available() // 8 // sum(_bytes(model) for model in models)))

    def seconds(images: int) -> float:
        rows = [_blank(position, models) for position in range(images)]
        answer(rows)  # kernels are chosen and graphs captured the first time
        torch.cuda.synchronize(models[0].device)
        started = time.perf_counter()
        answer(rows)
        torch.cuda.synchronize(models[0].device)
        return time.perf_counter() - started

    return probe(seconds)


def probe(seconds: Callable[[int], float]) -> int:
    """The size from which on twice as many images gain less than `PAYS`, or do not fit; `seconds(n)` is of n images."""
    size = FIRST
    try:
        spent = seconds(size)
        while size < LAST and 2 * spent >= PAYS * (more := seconds(2 * size)):
            size, spent = 2 * size, more
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release_all()
    return size


class AdaptiveBatcher:
    """Asks a model about batches, in pieces that fit: halved when memory runs out, and so from then on."""

    def __init__(self, answer: Answer, lanes: int = 1) -> None:
        self._answer, self._size = answer, LAST * lanes
        self._lanes = ThreadLanes(lanes)

    def __call__(self, batch: list[Row]) -> dict[int, Record]:
        """Answers for the rows with status ok, whose pixels are let go. Raises ConfigError: not one image fits."""
        asked = [row for row in batch if row.status == "ok"]
        found: dict[int, Record] = {}
        while asked:
            piece = asked[: self._size]
            if (answers := self._try(piece)) is None:
                self._size = len(piece) // 2
                continue
            found |= answers
            for row in piece:
                row.pixels.clear()
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
        release_all()
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


def _blank(position: int, models: Sequence[Blip]) -> Row:
    """A row of usual size, to be timed."""
    row = Row(position, f"{position:016x}", "web", "a photo of a thing on a table " * 2, None, True, "ok")
    row.pixels = [torch.zeros(3, model.image_size, model.image_size) for model in models]
    return row


def _bytes(model: Blip) -> int:
    """What an image takes, about: pixels of three batches, states, their packed copies, the captions' caches."""
    vision = model.config.vision
    return 4 * 6 * (3 * vision.image_size**2 + (vision.grid**2 + 1) * vision.width)


def _available() -> int:
    """Bytes of memory that could be had now; without Linux's word for it, those of 8 GiB."""
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 << 30
