"""From shards to batches: rows stay in order, batches depend on the data alone, little is held at a time."""

import gc
import weakref
from collections.abc import Callable, Iterator
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfilt.errors import DataError
from capfilt.inference import rows as module
from capfilt.inference.rows import Row, aligned, model_batches, prepared_of, read_rows
from capfilt.store.row_filter import RowFilter
from capfilt.store.schema import NEAR, PAIRS


def row(position: int, asked: bool = True, status: str | None = None) -> Row:
    return Row(position, str(position), "web", None, None, asked, status or ("ok" if asked else "skipped"), image=b"")


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode_image", lambda data, cap: data)


@given(st.lists(st.sampled_from(["ok", "skipped", "killed"])), st.integers(1, 5))
def test_batches_are_formed_from_the_data(kinds: list[str], size: int) -> None:
    made = [row(i, kind != "skipped", "failed" if kind == "killed" else None) for i, kind in enumerate(kinds)]
    found = [[r.position for r in batch] for batch in module._grouped(made, size)]
    assert [position for batch in found for position in batch] == list(range(len(kinds)))
    asked = [sum(kinds[position] != "skipped" for position in batch) for batch in found]
    assert all(number == size for number in asked[:-1])
    assert sum(asked[-1:]) <= size
    untouched = [row(i, kind != "skipped") for i, kind in enumerate(kinds)]
    assert [[r.position for r in batch] for batch in module._grouped(untouched, size)] == found


def test_little_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """From an endless shard: pictures only in the decoding threads, pixels of three batches, rows as many ahead."""
    pictures, pixels = weakref.WeakSet[Any](), weakref.WeakSet[Any]()
    most, read = {"pictures": 0, "pixels": 0}, 0

    class Picture:
        pass

    def decode(data: bytes, cap: int) -> Picture:
        picture = Picture()
        pictures.add(picture)
        most["pictures"] = max(most["pictures"], len(pictures))
        return picture

    def prepare(image: Picture, data: bytes) -> dict[str, torch.Tensor]:
        made = torch.zeros(3, 4, 4)
        pixels.add(made)
        most["pixels"] = max(most["pixels"], len(pixels))
        return {"pixels": made}

    def endless() -> Iterator[Row]:
        nonlocal read
        for read in count(1):
            yield row(read)

    monkeypatch.setattr(module, "decode_image", decode)
    gc.collect()
    model: Any = SimpleNamespace(prepare=prepare, device=torch.device("cpu"))
    stream = model_batches(endless(), 4, [model], 100)
    for number, batch in enumerate(islice(stream, 10), start=1):
        assert [one["pixels"].shape for one in prepared_of(batch)] == [(3, 4, 4)] * 4
        for row_ in batch:
            row_.prepared.clear()
        assert read <= 4 * (number + module.AHEAD)
    stream.close()
    assert most["pictures"] <= module.THREADS
    assert most["pixels"] <= 4 * (1 + module.AHEAD)


@pytest.mark.usefixtures("no_decoding")
def test_an_error_that_is_not_the_image_s_is_raised() -> None:
    def broken(image: object, data: bytes) -> Any:
        raise RuntimeError("no memory")

    model: Any = SimpleNamespace(prepare=broken, device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="no memory"):
        list(model_batches([row(0)], 4, [model], 100))


def test_sidecars_must_fit(make_layout: Callable[..., Any], pairs_row: Callable[..., Any], write_sidecar: Any) -> None:
    layout = make_layout([[pairs_row(i) for i in range(3)]], near={})
    columns = {PAIRS: ["text"], NEAR: ["duplicate_of"]}
    assert [records[NEAR]["duplicate_of"] for records in aligned(layout, 0, columns)] == [None] * 3
    uids = [pairs_row(i)["uid"] for i in range(4)]
    for wrong, place in ((uids[:2], "row 2 is None"), (uids[:4], "row 3 is 0{15}3, in .* it is None")):
        write_sidecar(layout, "near", 0, [{"uid": uid} for uid in wrong])
        with pytest.raises(DataError, match=place):
            list(aligned(layout, 0, columns))
    write_sidecar(layout, "near", 0, [{"uid": uid} for uid in (uids[1], uids[0], uids[2])])
    with pytest.raises(DataError, match=r"near-0.*row 0 is 0{15}1, in .*pairs.* it is 0{16}"):
        list(aligned(layout, 0, columns))


def test_a_stage_that_is_left_out_is_empty(make_layout: Callable[..., Any], pairs_row: Callable[..., Any]) -> None:
    layout = make_layout([[pairs_row(0)]])
    assert next(aligned(layout, 0, {PAIRS: ["text"], NEAR: ["duplicate_of"]}))[NEAR] == {}


def test_images_of_rows_that_are_not_asked_are_let_go(
    make_layout: Callable[..., Any], pairs_row: Callable[..., Any]
) -> None:
    made = [pairs_row(0), pairs_row(1, role="human"), pairs_row(2, status="rejected"), pairs_row(3), pairs_row(4)]
    layout = make_layout([made], near={made[3]["uid"]: made[0]["uid"]})
    found = list(read_rows(layout, 0, (PAIRS, NEAR), ("web",), RowFilter(frozenset({4}))))
    assert [r.status for r in found] == ["ok", "skipped", "skipped", "skipped", "failed"]
    assert [r.image is None for r in found] == [False, True, True, True, True]
    assert [r.position for r in read_rows(layout, 0, (PAIRS, NEAR), ("web",), RowFilter(only=range(1, 3)))] == [1, 2]
