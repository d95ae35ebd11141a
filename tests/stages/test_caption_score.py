"""Captions and scores made together are, to the byte, those that the two stages make one after the other."""

from collections.abc import Callable
from typing import Any

import pytest

from capfilt.engine.board import TaskBoard
from capfilt.engine.steps import Plan, Step
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.vision import VisionTower
from capfilt.stages.base import Task
from capfilt.stages.caption import CaptionStage
from capfilt.stages.caption_score import CaptionScoreStage
from capfilt.stages.score import ScoreStage
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter

Make = Callable[..., Any]
Record = dict[str, Any]
QUICK = {"samples": 2, "decoding": {"max_length": 12, "min_length": 5}}


@pytest.fixture
def mixed(pairs_row: Make) -> list[Record]:
    rows = [pairs_row(i, role="human" if i % 4 == 3 else "web") for i in range(11)]
    return [
        *rows,
        pairs_row(11, status="rejected"),
        pairs_row(12, status="quarantined"),
        pairs_row(13, data=b"no image"),
    ]


def ready(stage: type[Any], layout: RunLayout) -> Any:
    made = stage(layout)
    made.setup()
    return made


def files(layout: RunLayout) -> list[bytes]:
    return [layout.shard(stage, 0).read_bytes() for stage in ("caption", "score")]


@pytest.mark.parametrize(
    "models",
    [("tiny/captioner", "tiny/filter"), ("tiny/pretrained",) * 2, ("fake",) * 2, ("fake", "tiny/filter")],
)
@pytest.mark.parametrize("skip", [frozenset[int](), frozenset({1})])
def test_bytes_are_those_of_the_stages_apart(
    make_layout: Make, mixed: list[Record], models: tuple[str, str], skip: frozenset[int]
) -> None:
    parts: Record = {"caption": {"model": models[0], **QUICK}, "score": {"model": models[1]}}
    apart, together = (
        make_layout([mixed], near={mixed[5]["uid"]: mixed[4]["uid"]}, name=name, **parts) for name in "ab"
    )
    for stage in (CaptionStage, ScoreStage):
        ready(stage, apart).process(Task(0, RowFilter(skip)))
    stage = ready(CaptionScoreStage, together)
    stage.process(Task(0, RowFilter(skip)))
    assert files(together) == files(apart)
    assert stage.shared == (models[0] == models[1])


def test_bytes_do_not_depend_on_the_batch_size(make_layout: Make, mixed: list[Record]) -> None:
    found = []
    for name, size in (("a", 1), ("b", 3), ("c", 64)):
        layout = make_layout([mixed], name=name, caption={**QUICK, "batch_size": size}, score={"batch_size": size})
        ready(CaptionScoreStage, layout).process(Task(0))
        found.append(files(layout))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("stages", [(CaptionScoreStage,), (CaptionStage, ScoreStage)])
def test_bytes_do_not_depend_on_a_workers_cores(
    make_layout: Make, mixed: list[Record], stages: tuple[type[Any]]
) -> None:
    found = []
    for cores in (1, 2, 3):
        resources = {stage: {"num_cpus": cores} for stage in ("caption", "score")}
        layout = make_layout([mixed], name=str(cores), caption=QUICK, resources=resources)
        for stage in stages:
            made = ready(stage, layout)
            assert made.worker.batcher._lanes.count == cores
            made.process(Task(0))
        found.append(files(layout))
    assert found[0] == found[1] == found[2]


def test_an_equal_tower_runs_once_an_image(
    make_layout: Make, mixed: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = VisionTower.forward
    monkeypatch.setattr(VisionTower, "forward", lambda self, x: (seen.append(len(x)), real(self, x))[1])
    for models, times in ((("tiny/captioner", "tiny/filter"), 9 + 11), (("tiny/pretrained",) * 2, 11)):
        layout = make_layout(
            [mixed[:11]], name=str(times), caption={"model": models[0], **QUICK}, score={"model": models[1]}
        )
        seen.clear()
        ready(CaptionScoreStage, layout).process(Task(0))
        assert sum(seen) == times


def test_only_some_rows_and_nothing_written(
    make_layout: Make, mixed: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioned: list[str] = []
    real = Blip.captions
    spy = lambda self, states, uids, samples: (captioned.extend(uids), real(self, states, uids, samples))[1]  # noqa: E731
    monkeypatch.setattr(Blip, "captions", spy)
    layout = make_layout([mixed], caption=QUICK)
    ready(CaptionScoreStage, layout).process(Task(0, RowFilter(only=range(2, 5))))
    assert captioned == [mixed[2]["uid"], mixed[4]["uid"]]
    assert not layout.folder("caption").exists()


def plan(layout: RunLayout, caption: tuple[int, ...], score: tuple[int, ...]) -> Plan:
    return Plan(layout, (Step(CaptionStage, "c", {}, caption, ""), Step(ScoreStage, "s", {}, score, "")))


def test_the_planner_makes_together_what_is_missing_of_both(make_layout: Make, mixed: list[Record]) -> None:
    layout = make_layout([mixed[:1]] * 3)
    work = {group.name: group.todo for group in plan(layout, (0, 1), (0, 1, 2)).groups}
    assert work == {"caption+score": (0, 1), "caption": (), "score": (2,)}
    assert [group.name for group in plan(layout, (), (0, 1, 2)).groups] == ["caption", "score"]
    for change in ({"resources": {"caption": {"num_gpus": 0.5}}}, {"caption": {"device": "auto"}}):
        other = make_layout([mixed[:1]], name="other", **change)
        assert [group.name for group in plan(other, (0,), (0,)).groups] == ["caption", "score"]


def test_a_shard_that_kills_is_left_to_the_stages_apart(make_layout: Make, mixed: list[Record]) -> None:
    layout = make_layout([mixed[:1]] * 2)
    board = TaskBoard(plan(layout, (0, 1), (0, 1)))
    assert list(board.ready("caption+score")) == [0, 1]
    assert not board.ready("caption")
    assert not board.ready("score")
    assert [board.take("caption+score"), board.take("caption+score")] == [0, 1]
    board.split("caption+score", 1)
    assert list(board.ready("caption")) == [1]
    assert not board.ready("score")
    assert board.take("caption") == 1
    board.finish("caption", 1)
    assert list(board.ready("score")) == [1]
    assert board.take("score") == 1
    board.finish("score", 1)
    assert not board.finished
    board.finish("caption+score", 0)
    assert board.finished
