"""The training feed: shuffled, augmented batches straight from Parquet, resumable to the step.

The order of an epoch is a pure function of (data, seed, epoch): row groups are shuffled, with the sources spread evenly
over the epoch, and rows are shuffled inside a window of row groups. It knows nothing of ranks, workers or restarts:
rank r of w takes slice r of each global batch, and going on from step k computes nothing of the steps before.
The incomplete last global batch of an epoch is dropped. A sample's noise is keyed on (seed, epoch, position).

**Bad rows.** A row whose image cannot be decoded, or whose drawn text is empty, is replaced by the next good row of the
epoch's order (which wraps round); the row is counted in `Feed.replaced` and logged once. `_PATIENCE` bad rows in
succession are a DataError, and so is a page that cannot be read: a damaged file is no row's fault.

**Memory.** Parquet's unit of reading is the row group, so a process that reads holds up to one window of them:
`shuffle_row_groups` or `shuffle_bytes` of their columns, whichever is less, but at least one whole row group. A foreign
file whose single row group is 4 GB takes 4 GB **in each worker**: write such files anew with row groups of <= 64 MiB.
Bytes are counted as the footer states them; an image repeated on many rows is stored once there and counts once.
Each worker reads each row group once an epoch.
"""

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerContext
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from capfilt.errors import CapfiltError, DataError, InputError
from capfilt.media.images import decode_image
from capfilt.media.text import draw_text, pre_caption
from capfilt.training.augment import Augment
from capfilt.training.batch import TrainBatch
from capfilt.training.sources import SAMPLE, BadRowError, Index, Row, Rows, SourceConfig, build_index

logger = logging.getLogger(__name__)

SHUFFLE_BYTES = 512 << 20
_PATIENCE = 1000
_LOGGED = 20

Order = NDArray[np.int64]
Key = tuple[int, int]
"""(epoch, step)"""


def epoch_length(index: Index) -> int:
    """Samples an epoch: the same in every epoch."""
    sizes = np.diff(index.starts)
    return sum(round(source.weight * int(size)) for source, size in zip(index.sources, sizes, strict=True))


def epoch_order(index: Index, seed: int, epoch: int, window: int = 64, window_bytes: int = SHUFFLE_BYTES) -> Order:
    """(epoch_length,) sample numbers in the order in which the epoch takes them."""
    sample, visit = _draw(index, seed, epoch)
    visits, inverse = np.unique(visit, return_inverse=True)
    group = visits % max(1, len(index.groups))
    order = _spread(np.array([g.source for g in index.groups])[group], _noise(len(visits), seed, epoch, 1))
    window_of = np.empty(len(visits), dtype=np.int64)
    window_of[order] = _windows([index.groups[g].cost for g in group[order]], window, window_bytes)
    return sample[np.lexsort((_noise(len(sample), seed, epoch, 2), window_of[inverse]))]


def _draw(index: Index, seed: int, epoch: int) -> tuple[Order, Order]:
    """The epoch's samples, and the visit in which each is read: a row group has one visit for each copy of its rows."""
    samples, visits = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number, source in enumerate(index.sources):
        start, end = (int(i) for i in index.starts[number : number + 2])
        noise, total = _noise(end - start, seed, epoch, 3 + number), round(source.weight * (end - start))
        for copy, done in enumerate(range(0, total, end - start)):
            chosen = start + np.sort(np.argsort(noise, kind="stable")[: total - done])
            samples.append(chosen)
            visits.append(copy * len(index.groups) + index.group[chosen].astype(np.int64))
    return np.concatenate(samples), np.concatenate(visits)


def _noise(size: int, seed: int, epoch: int, use: int) -> NDArray[np.uint64]:
    """Raw PCG64 output, which numpy promises never to change (it does not for `permutation`)."""
    return np.random.PCG64(np.random.SeedSequence((seed, epoch, use))).random_raw(size)


def _spread(source: NDArray[np.int64], noise: NDArray[np.uint64]) -> Order:
    """Visits in an order that is random within a source and spreads every source evenly over the epoch."""
    place = np.empty(len(source))
    for number in np.unique(source):
        mine = np.flatnonzero(source == number)
        rank = np.argsort(np.argsort(noise[mine], kind="stable"), kind="stable")
        place[mine] = (rank + (noise[mine] >> np.uint64(11)) / 2.0**53) / len(mine)
    return np.argsort(place, kind="stable")


def _windows(costs: Sequence[int], most: int, most_bytes: int) -> list[int]:
    """The window of each visit: as many in succession as fit, at least one."""
    windows, number, count, held = [], 0, 0, 0
    for cost in costs:
        if count and (count == most or held + cost > most_bytes):
            number, count, held = number + 1, 0, 0
        windows.append(number)
        count, held = count + 1, held + cost
    return windows


class Loaded(NamedTuple):
    """What a worker hands over: a batch and the (uid, reason) of the rows replaced in it, or why there is none."""

    batch: TrainBatch | None
    replaced: list[tuple[str, str]]
    error: CapfiltError | None = None


class Batches(Dataset[Loaded]):
    """(epoch, step) -> this rank's batch. Pickled to workers, who work out the epoch's order for themselves."""

    def __init__(self, index: Index, augment: Augment, shape: "Shape") -> None:
        self.index, self.augment, self.shape = index, augment, shape
        self._rows = Rows(index, shape.shuffle_bytes)
        self._order: tuple[int, Order] | None = None

    def __getitem__(self, key: Key) -> Loaded:
        try:
            return self._load(*key)
        except CapfiltError as error:  # raised by the feed: a DataLoader would bury it in a worker's traceback
            return Loaded(None, [], error)

    def _load(self, epoch: int, step: int) -> Loaded:
        shape, replaced = self.shape, list[tuple[str, str]]()
        first = (step * shape.world + shape.rank) * shape.batch_size
        samples = [self._sample(epoch, first + i, replaced) for i in range(shape.batch_size)]
        return Loaded(
            TrainBatch(
                pixels=torch.stack([pixels for pixels, _, _ in samples]),
                texts=[text for _, text, _ in samples],
                image_ids=torch.tensor([row.image_id for _, _, row in samples], dtype=torch.int64),
                uids=[row.uid for _, _, row in samples],
            ),
            replaced,
        )

    def _sample(self, epoch: int, position: int, replaced: list[tuple[str, str]]) -> tuple[Tensor, str, Row]:
        order, bad = self._epoch_order(epoch), list[tuple[str, str]]()
        for ahead in range(min(len(order), _PATIENCE)):
            rng = Random(f"{self.shape.seed}:{epoch}:{position}")
            try:
                sample = self._read(int(order[(position + ahead) % len(order)]), rng)
            except BadRowError as error:
                bad.append((error.uid, error.reason))
                continue
            replaced += bad
            return sample
        raise DataError(f"{len(bad)} rows in succession cannot be used; the first is {bad[0][0]}: {bad[0][1]}")

    def _epoch_order(self, epoch: int) -> Order:
        if self._order is None or self._order[0] != epoch:
            shape = self.shape
            order = epoch_order(self.index, shape.seed, epoch, shape.shuffle_row_groups, shape.shuffle_bytes)
            self._order = epoch, order
        return self._order[1]

    def _read(self, sample: int, rng: Random) -> tuple[Tensor, str, Row]:
        row = self._rows.read(sample)
        text = self._text(row, int(self.index.slot[sample]), sample, rng)
        if not text:
            raise BadRowError(row.uid, "no text is left after pre_caption")
        try:
            image = decode_image(row.image, draft_side=self.augment.draft_side)
        except DataError as error:
            raise BadRowError(row.uid, str(error)) from None
        return self.augment(image, rng), text, row

    def _text(self, row: Row, slot: int, sample: int, rng: Random) -> str:
        words = self.shape.max_words
        columns = [[pre_caption(text, words) for text in column] for column in row.texts]
        if slot != SAMPLE:
            return [text for column in columns for text in column][slot]
        weights = self.index.sources[self.index.groups[self.index.group[sample]].source].text_weights
        return draw_text(columns, weights, rng)


class Shape(NamedTuple):
    """How an epoch is cut up; see `Feed`."""

    batch_size: int
    seed: int
    rank: int
    world: int
    max_words: int | None
    shuffle_row_groups: int
    shuffle_bytes: int


class _Steps(Sampler[Key]):
    """The keys of the steps still to do; the feed sets them before it asks the loader for an iterator."""

    def __init__(self) -> None:
        self.epoch, self.steps = 0, range(0)

    def __iter__(self) -> Iterator[Key]:
        return ((self.epoch, step) for step in self.steps)


def _worker_context() -> ForkServerContext:
    """Workers fork from a clean process that has imported this module: never beside the threads of gloo or Ray."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Feed:
    """Training batches of one rank, epoch by epoch. One iterator at a time."""

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        augment: Augment,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        max_words: int | None = 30,
        shuffle_row_groups: int = 64,
        shuffle_bytes: int = SHUFFLE_BYTES,
    ) -> None:
        """`batch_size` is that of one rank; `workers` processes (0: this one) decode ahead.

        Raises InputError for a number out of range and DataError for sources that cannot be read, have no usable row,
        or are smaller than one global batch.
        """
        at_least_1, at_least_0 = (batch_size, world, shuffle_row_groups, shuffle_bytes), (seed, workers, rank)
        if min(at_least_1) < 1 or min(at_least_0) < 0 or rank >= world:
            raise InputError(
                "batch_size, world, shuffle_row_groups and shuffle_bytes must be >= 1, seed and workers >= 0, "
                f"0 <= rank < world; got {batch_size=} {world=} {shuffle_row_groups=} {shuffle_bytes=} {seed=} "
                f"{workers=} {rank=}"
            )
        self.index = build_index(list(sources))
        self.epoch_samples = epoch_length(self.index)
        """Samples an epoch before the incomplete last batch is dropped."""
        self.steps_per_epoch = self.epoch_samples // (batch_size * world)
        if not self.steps_per_epoch:
            raise DataError(
                f"an epoch has {self.epoch_samples} samples, fewer than one global batch of {batch_size} x {world} "
                "ranks: lower batch_size, or raise the sources' weight"
            )
        self.replaced: dict[str, str] = {}
        """uid -> reason of every row that another stood in for so far, on this rank."""
        shape = Shape(batch_size, seed, rank, world, max_words, shuffle_row_groups, shuffle_bytes)
        self._steps = _Steps()
        self._loader = DataLoader(
            Batches(self.index, augment, shape),
            batch_size=None,
            sampler=self._steps,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context=_worker_context() if workers else None,
        )

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
        """Batches `start_step` .. `steps_per_epoch` - 1 of epoch `epoch` (from 0); equal to skipping, at no cost.

        Raises InputError for a step out of range and DataError as the module says.
        """
        if epoch < 0 or not 0 <= start_step <= self.steps_per_epoch:
            raise InputError(f"epoch {epoch}, step {start_step}: an epoch has steps 0 to {self.steps_per_epoch}")
        self._steps.epoch, self._steps.steps = epoch, range(start_step, self.steps_per_epoch)
        for loaded in self._loader:
            if loaded.error is not None:
                raise loaded.error
            assert loaded.batch is not None
            self._note(loaded.replaced)
            yield loaded.batch

    def _note(self, replaced: list[tuple[str, str]]) -> None:
        for uid, reason in replaced:
            if uid in self.replaced:
                continue
            self.replaced[uid] = reason
            if len(self.replaced) <= _LOGGED:
                logger.warning("row %s: %s; another row takes its place", uid, reason)
            if len(self.replaced) == _LOGGED:
                logger.warning("further rows that are replaced are only counted")
