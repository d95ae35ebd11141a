from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capfilt.training.epoch_order import epoch_length, epoch_order, shuffle_windows
from capfilt.training.sources import RowGroup, SampleIndex, SourceConfig


@st.composite
def indexes(draw: st.DrawFn) -> SampleIndex:
    sizes = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=3))
    weights = draw(st.lists(st.sampled_from([0.3, 0.5, 1.0, 2.0, 2.5]), min_size=len(sizes), max_size=len(sizes)))
    sources = tuple(SourceConfig(path="x", weight=weight) for weight in weights)
    groups = tuple(RowGroup(s, "x", g, 0, (), 10) for s, groups in enumerate(sizes) for g in range(len(groups)))
    counts = [count for groups in sizes for count in groups]
    group = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return SampleIndex(sources, groups, group, row, np.full(len(row), -1, np.int32))


@given(indexes(), st.integers(0, 2**40), st.integers(0, 50), st.integers(1, 8), st.integers(1, 100))
def test_an_epoch_sees_every_sample_as_often_as_its_weight_says(
    index: SampleIndex, seed: int, epoch: int, window: int, window_bytes: int
) -> None:
    order = epoch_order(index, seed, epoch, window, window_bytes)
    assert len(order) == epoch_length(index)
    assert (order == epoch_order(index, seed, epoch, window, window_bytes)).all()
    seen = Counter(order.tolist())
    for number, source in enumerate(index.sources):
        mine = range(int(index.starts[number]), int(index.starts[number + 1]))
        counts = [seen[sample] for sample in mine]
        assert min(counts) >= int(source.weight)
        assert max(counts) <= -(-source.weight // 1)
        assert sum(counts) == round(source.weight * len(mine))


@given(indexes(), st.integers(1, 4), st.integers(1, 60))
def test_an_epoch_reads_each_row_group_within_one_window(index: SampleIndex, window: int, window_bytes: int) -> None:
    index = SampleIndex(
        (SourceConfig(path="x"),) * len(index.sources), index.groups, index.group, index.row, index.slot
    )
    groups = index.group[epoch_order(index, 0, 0, window, window_bytes)].tolist()
    most = max(1, min(window, window_bytes // 10))
    seen: list[int] = []
    for group in groups:
        seen += [group] if group not in seen else []
    for place, group in enumerate(seen):
        last = len(groups) - 1 - groups[::-1].index(group)
        later = {g for g in groups[: last + 1] if g in seen[place:]}
        assert len(later) <= most


@given(st.lists(st.integers(1, 50)), st.integers(1, 5), st.integers(1, 100))
def test_windows_fit_or_hold_one(costs: list[int], most: int, most_bytes: int) -> None:
    windows = shuffle_windows(costs, most, most_bytes)
    assert windows == sorted(windows)
    for number in set(windows):
        held = [cost for cost, window in zip(costs, windows, strict=True) if window == number]
        assert len(held) <= most
        assert sum(held) <= most_bytes or len(held) == 1


def test_the_order_never_changes_between_versions() -> None:
    index = SampleIndex(
        (SourceConfig(path="x"),),
        tuple(RowGroup(0, "x", g, 0, (), 1) for g in range(4)),
        np.repeat(np.arange(4, dtype=np.int32), 3),
        np.tile(np.arange(3, dtype=np.int32), 4),
        np.full(12, -1, np.int32),
    )
    assert epoch_order(index, 7, 1, window=2).tolist() == [5, 4, 3, 6, 7, 8, 2, 11, 1, 10, 9, 0]
