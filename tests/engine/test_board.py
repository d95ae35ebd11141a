"""The scheduler's board: a task is ready exactly when its inputs exist, whatever the order in which tasks finish."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.engine.board import TaskBoard
from tests.fake_plan import fake_plan

ORDER = {"ingest": 0, "caption": 1, "emit": 2}


def test_a_shard_task_waits_for_its_own_shard_alone(tmp_path: Path) -> None:
    board = TaskBoard(fake_plan(tmp_path, shards=3))
    assert list(board.ready("ingest")) == [0, 1, 2]
    assert not board.ready("caption")
    assert [board.take("ingest") for _ in range(3)] == [0, 1, 2]
    board.finish("ingest", 1)
    assert list(board.ready("caption")) == [1]
    assert not board.ready("emit")


def test_a_task_for_the_whole_run_waits_for_every_shard(tmp_path: Path) -> None:
    board = TaskBoard(fake_plan(tmp_path, shards=2))
    for name in ("ingest", "caption"):
        for index in [board.take(name), board.take(name)]:
            assert not board.ready("emit")
            board.finish(name, index)
    assert list(board.ready("emit")) == [0]
    board.finish("emit", board.take("emit"))
    assert board.finished


def test_a_task_that_is_put_back_is_the_next(tmp_path: Path) -> None:
    board = TaskBoard(fake_plan(tmp_path, shards=3))
    first = board.take("ingest")
    board.put_back("ingest", first)
    assert board.take("ingest") == first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("board")


@given(st.data(), st.integers(1, 8))
def test_every_order_finishes_every_task_once_and_never_before_its_inputs(
    folder: Path, data: st.DataObject, shards: int
) -> None:
    board = TaskBoard(fake_plan(folder, shards=shards))
    running: list[tuple[str, int]] = []
    done: Counter[tuple[str, int]] = Counter()
    while not board.finished:
        ready = [name for name in ORDER if board.ready(name)]
        choices = [("take", name) for name in ready] + [("finish", str(i)) for i in range(len(running))]
        action, what = data.draw(st.sampled_from(choices))
        if action == "take":
            task = (what, board.take(what))
            if what == "caption":
                assert done["ingest", task[1]] == 1
            if what == "emit":
                assert all(done["caption", i] == 1 for i in range(shards))
            running.append(task)
        else:
            task = running.pop(int(what))
            done[task] += 1
            board.finish(*task)
    assert sorted(done) == sorted([("emit", 0), *((n, i) for n in ("ingest", "caption") for i in range(shards))])
    assert set(done.values()) == {1}
