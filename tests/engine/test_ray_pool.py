"""The Ray engine on a real local Ray: order, deaths, poison, a full disk, places handed on."""

from pathlib import Path

import pytest

from capfilt.engine.board import Done
from capfilt.engine.local import run_local
from capfilt.engine.ray_cluster import check_capacity
from capfilt.engine.ray_pool import run_ray
from capfilt.errors import RunError
from tests.fake_plan import expected, fake_plan
from tests.fake_stages import ROWS

pytestmark = pytest.mark.usefixtures("connected_ray")


def test_every_shard_once_and_as_in_one_process(tmp_path: Path) -> None:
    seen: list[Done] = []
    run_ray(fake_plan(tmp_path / "ray"), seen.append)
    assert sorted((d.stage, d.shard) for d in seen if d.stage != "emit") == sorted(
        (stage, i) for stage in ("ingest", "caption") for i in range(6)
    )
    assert seen[-1].stage == "emit"
    run_local(fake_plan(tmp_path / "local"), seen.append)
    assert (tmp_path / "ray/joined").read_text() == (tmp_path / "local/joined").read_text() == expected()


def test_a_worker_that_dies_once_costs_nothing_but_time(tmp_path: Path) -> None:
    seen: list[Done] = []
    run_ray(fake_plan(tmp_path, "once-3"), seen.append)
    assert (tmp_path / "died").exists()
    assert (tmp_path / "joined").read_text() == expected()
    assert not any(done.poison for done in seen)


def test_rows_that_kill_are_found_and_left_out_and_the_rest_finishes(tmp_path: Path) -> None:
    seen: list[Done] = []
    run_ray(fake_plan(tmp_path, "die-2-1-6", shards=3), seen.append)
    lines = (tmp_path / "joined").read_text().splitlines()
    wanted = expected(3).splitlines()
    assert [i for i, (a, b) in enumerate(zip(lines, wanted, strict=True)) if a != b] == [2 * ROWS + 1, 2 * ROWS + 6]
    assert [done.poison for done in seen if done.poison] == [(1, 6)]


def test_a_full_disk_is_no_row_s_fault(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"caption, shard 1: .*No space left on device.*same command again"):
        run_ray(fake_plan(tmp_path, "full-1"), lambda done: None)
    assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize("most", [1, 2])
def test_as_many_actors_as_asked_for(tmp_path: Path, most: int) -> None:
    run_ray(fake_plan(tmp_path, caption={"max_actors": most, "min_actors": most}), lambda done: None)
    assert len(list(tmp_path.glob("caption-*.pid"))) == most


def test_a_stage_that_needs_the_whole_machine_waits_for_it(tmp_path: Path) -> None:
    run_ray(fake_plan(tmp_path, caption={"num_cpus": 2}), lambda done: None)
    assert (tmp_path / "joined").read_text() == expected()


def test_more_than_the_machine_has(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"resources.caption: an actor wants 1 GPUs, this machine has 0"):
        check_capacity(fake_plan(tmp_path, caption={"num_gpus": 1}))
