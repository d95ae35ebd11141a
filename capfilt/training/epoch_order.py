"""The order of an epoch's samples: a pure function of (data, seed, epoch).

Row groups are shuffled, with every source spread evenly over the epoch; then rows are shuffled inside a window of row
groups, so that a reader holds one window in memory. The order does not depend on ranks, workers or restarts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from capfilt.training.sources import SampleIndex

Order = NDArray[np.int64]
"""(N,) int64 sample numbers, or numbers of visits, in order."""
SHUFFLE_BYTES = 512 << 20
"""Bytes of the row groups that are shuffled together."""


def epoch_length(index: SampleIndex) -> int:
    """Samples per epoch: the same in every epoch."""
    sizes = np.diff(index.starts)
    return sum(round(source.weight * int(size)) for source, size in zip(index.sources, sizes, strict=True))


def epoch_order(
    index: SampleIndex, seed: int, epoch: int, window: int = 64, window_bytes: int = SHUFFLE_BYTES
) -> Order:
    """Shuffle the samples of one epoch.

    Args:
        index: all samples.
        seed: of the run.
        epoch: from 0.
        window: most row groups whose rows are shuffled together.
        window_bytes: most bytes of those row groups.

    Returns:
        (epoch_length,) int64 sample numbers.
    """
    sample, visit = _draw(index, seed, epoch)
    visits, inverse = np.unique(visit, return_inverse=True)
    group = visits % max(1, len(index.groups))
    order = _spread(np.array([g.source for g in index.groups])[group], _noise(len(visits), seed, epoch, 1))
    window_of = np.empty(len(visits), dtype=np.int64)
    window_of[order] = shuffle_windows([index.groups[g].cost for g in group[order]], window, window_bytes)
    return sample[np.lexsort((_noise(len(sample), seed, epoch, 2), window_of[inverse]))]


def _draw(index: SampleIndex, seed: int, epoch: int) -> tuple[Order, Order]:
    """Draw the epoch's samples and the visit in which each is read: one visit of a row group per copy of its rows."""
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
    """Raw PCG64 output, which numpy promises never to change (it makes no such promise for `permutation`)."""
    return np.random.PCG64(np.random.SeedSequence((seed, epoch, use))).random_raw(size)


def _spread(source: NDArray[np.int64], noise: NDArray[np.uint64]) -> Order:
    """Order the visits: random within a source, every source spread evenly over the epoch."""
    place = np.empty(len(source))
    for number in np.unique(source):
        mine = np.flatnonzero(source == number)
        rank = np.argsort(np.argsort(noise[mine], kind="stable"), kind="stable")
        place[mine] = (rank + (noise[mine] >> np.uint64(11)) / 2.0**53) / len(mine)
    return np.argsort(place, kind="stable")


def shuffle_windows(costs: Sequence[int], most: int, most_bytes: int) -> list[int]:
    """Number the window of each visit. A window holds as many successive visits as fit, at least one."""
    windows, number, count, held = [], 0, 0, 0
    for cost in costs:
        if count and (count == most or held + cost > most_bytes):
            number, count, held = number + 1, 0, 0
        windows.append(number)
        count, held = count + 1, held + cost
    return windows
