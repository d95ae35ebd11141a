"""Load training batches: shuffled and augmented, straight from Parquet, resumable at any step.

`epoch_order` fixes the order of an epoch's samples. Rank r of w gets slice r of each global batch, and continuing from
step k computes nothing of the steps before it. The incomplete last global batch of an epoch is dropped. A sample's
augmentation and drawn text are keyed on (seed, epoch, position).

**Bad rows.** A row whose image cannot be decoded, or whose drawn text is empty, is replaced by the next good row of the
epoch's order (which wraps round). The row is counted in `TrainLoader.replaced` and logged once. `_PATIENCE` bad rows in
succession are a DataError, and so is a page that cannot be read, because the file is then damaged, not the row.

**Memory.** Parquet is read one row group at a time, so a process that reads holds up to one window of them:
`shuffle_row_groups` or `shuffle_bytes` of their columns, whichever is less, but at least one whole row group. A file
whose single row group is 4 GB takes 4 GB **in each worker**: rewrite such files with row groups of <= 64 MiB.
Bytes are counted as the file's footer states them; an image repeated on many rows is stored once there and counts once.
Each worker reads each row group once per epoch.
"""

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from capfilt.errors import CapfiltError, DataError, InputError
from capfilt.media.images import decode_image
from capfilt.media.text import draw_text, pre_caption
from capfilt.training.augment import Augment
from capfilt.training.batch import TrainBatch
from capfilt.training.epoch_order import SHUFFLE_BYTES, Order, epoch_length, epoch_order
from capfilt.training.samples import BadRowError, SampleReader, SampleRow
from capfilt.training.sources import SAMPLE, SampleIndex, SourceConfig, build_index

logger = logging.getLogger(__name__)

_PATIENCE = 1000
_LOGGED = 20

StepKey = tuple[int, int]
"""(epoch, step)"""
Replaced = tuple[str, str]
"""(uid, reason) of a row that cannot be used."""


@dataclass(frozen=True)
class BatchPlan:
    """How an epoch is divided into batches, and among ranks. Raises InputError for a number out of range."""

    batch_size: int
    """Pairs per batch of one rank."""
    seed: int
    rank: int = 0
    world: int = 1
    """Number of ranks."""
    max_words: int | None = 30
    """Longest text in words; None: no limit."""
    shuffle_row_groups: int = 64
    """Most row groups whose rows are shuffled together."""
    shuffle_bytes: int = SHUFFLE_BYTES
    """Most bytes of those row groups."""

    def __post_init__(self) -> None:
        at_least_1 = (self.batch_size, self.world, self.shuffle_row_groups, self.shuffle_bytes)
        if min(at_least_1) < 1 or min(self.seed, self.rank) < 0 or self.rank >= self.world:
            raise InputError(
                "batch_size, world, shuffle_row_groups and shuffle_bytes must be >= 1, seed >= 0, "
                f"0 <= rank < world; got {self}"
            )


class LoadedBatch(NamedTuple):
    """What a worker hands over: a batch and the rows replaced in it, or the error that prevents it."""

    batch: TrainBatch | None
    replaced: list[Replaced]
    error: CapfiltError | None = None


class BatchDataset(Dataset[LoadedBatch]):
    """(epoch, step) -> this rank's batch. It is pickled to workers, which compute the epoch's order themselves."""

    def __init__(self, index: SampleIndex, augment: Augment, plan: BatchPlan) -> None:
        self.index, self.augment, self.plan = index, augment, plan
        self._reader = SampleReader(index, plan.shuffle_bytes)
        self._order: tuple[int, Order] | None = None

    def __getitem__(self, key: StepKey) -> LoadedBatch:
        try:
            return self._load(*key)
        except CapfiltError as error:  # TrainLoader raises it: a DataLoader would bury it in a worker's traceback
            return LoadedBatch(None, [], error)

    def _load(self, epoch: int, step: int) -> LoadedBatch:
        plan, replaced = self.plan, list[Replaced]()
        first = (step * plan.world + plan.rank) * plan.batch_size
        samples = [self._sample(epoch, first + i, replaced) for i in range(plan.batch_size)]
        return LoadedBatch(
            TrainBatch(
                pixels=torch.stack([pixels for pixels, _, _ in samples]),
                texts=[text for _, text, _ in samples],
                image_ids=torch.tensor([row.image_id for _, _, row in samples], dtype=torch.int64),
                uids=[row.uid for _, _, row in samples],
            ),
            replaced,
        )

    def _sample(self, epoch: int, position: int, replaced: list[Replaced]) -> tuple[Tensor, str, SampleRow]:
        order, bad = self._epoch_order(epoch), list[Replaced]()
        for ahead in range(min(len(order), _PATIENCE)):
            rng = Random(f"{self.plan.seed}:{epoch}:{position}")
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
            plan = self.plan
            order = epoch_order(self.index, plan.seed, epoch, plan.shuffle_row_groups, plan.shuffle_bytes)
            self._order = epoch, order
        return self._order[1]

    def _read(self, sample: int, rng: Random) -> tuple[Tensor, str, SampleRow]:
        row = self._reader.read(sample)
        text = self._text(row, int(self.index.slot[sample]), sample, rng)
        if not text:
            raise BadRowError(row.uid, "no text is left after pre_caption")
        try:
            image = decode_image(row.image, draft_side=self.augment.draft_side)
        except DataError as error:
            raise BadRowError(row.uid, str(error)) from None
        return self.augment(image, rng), text, row

    def _text(self, row: SampleRow, slot: int, sample: int, rng: Random) -> str:
        words = self.plan.max_words
        columns = [[pre_caption(text, words) for text in column] for column in row.texts]
        if slot != SAMPLE:
            return [text for column in columns for text in column][slot]
        weights = self.index.sources[self.index.groups[self.index.group[sample]].source].text_weights
        return draw_text(columns, weights, rng)


class _Steps(Sampler[StepKey]):
    """The keys of the steps still to do. `TrainLoader` sets them before it asks the DataLoader for an iterator."""

    def __init__(self) -> None:
        self.epoch, self.steps = 0, range(0)

    def __iter__(self) -> Iterator[StepKey]:
        return ((self.epoch, step) for step in self.steps)


def _worker_context() -> ForkServerContext:
    """Let workers fork from a clean process that has imported this module, not from one with threads of gloo or Ray."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class TrainLoader:
    """Training batches of one rank, epoch by epoch. One iterator at a time.

    Attributes:
        index: all samples of the sources.
        epoch_samples: samples per epoch, before the incomplete last batch is dropped.
        steps_per_epoch: batches per epoch.
        replaced: uid -> reason of every row on this rank that another row has replaced so far.
    """

    def __init__(self, sources: Sequence[SourceConfig], augment: Augment, plan: BatchPlan, workers: int = 0) -> None:
        """Index the sources.

        Args:
            sources: Parquet sources.
            augment: image -> pixels.
            plan: how an epoch is divided.
            workers: processes that decode ahead; 0: this process decodes.

        Raises:
            InputError: workers < 0.
            DataError: sources that cannot be read, have no usable row, or are smaller than one global batch.
        """
        if workers < 0:
            raise InputError(f"workers must be >= 0; got {workers}")
        self.index = build_index(list(sources))
        self.epoch_samples = epoch_length(self.index)
        self.steps_per_epoch = self.epoch_samples // (plan.batch_size * plan.world)
        if not self.steps_per_epoch:
            raise DataError(
                f"an epoch has {self.epoch_samples} samples, fewer than one global batch of {plan.batch_size} x "
                f"{plan.world} ranks: lower batch_size, or raise the sources' weight"
            )
        self.replaced: dict[str, str] = {}
        self._steps = _Steps()
        self._loader = DataLoader(
            BatchDataset(self.index, augment, plan),
            batch_size=None,
            sampler=self._steps,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context=_worker_context() if workers else None,
        )

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[TrainBatch]:
        """Yield batches `start_step` .. `steps_per_epoch` - 1 of epoch `epoch` (from 0).

        Raises:
            InputError: a step out of range.
            DataError: as the module's docstring says.
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

    def _note(self, replaced: list[Replaced]) -> None:
        for uid, reason in replaced:
            if uid in self.replaced:
                continue
            self.replaced[uid] = reason
            if len(self.replaced) <= _LOGGED:
                logger.warning("row %s: %s; another row takes its place", uid, reason)
            if len(self.replaced) == _LOGGED:
                logger.warning("further rows that are replaced are only counted")
