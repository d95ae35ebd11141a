"""A worker's systems compute with one torch thread on a CPU, and leave the process as it was."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from capfilt.errors import DataError
from capfilt.inference.rows import Row
from capfilt.inference.worker import SystemWorker
from capfilt.models.fake import FakeSystem
from capfilt.models.protocols import Prepared
from capfilt.stages.base import Task
from capfilt.stages.caption import CaptionStage
from capfilt.stages.score import ScoreStage


class Watched(FakeSystem):
    """Notes how many torch threads it has."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = set[int]()

    def encode(self, prepared: Sequence[Prepared]) -> torch.Tensor:
        self.threads.add(torch.get_num_threads())
        return super().encode(prepared)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("stage", "part"), [(CaptionStage, "caption"), (ScoreStage, "score")])
def test_torch_threads_are_put_back(stage: Any, part: str, make_layout: Any, pairs_row: Any) -> None:
    models = {"caption": None, "score": {"model": "fake"}, part: {"model": "fake"}}
    layout = make_layout([[pairs_row(i) for i in range(5)]], **models)
    made = stage(layout)
    made.setup()
    watched = Watched()
    made.captioner = made.judge = watched
    made.process(Task(0))
    assert watched.threads == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_and_after_an_error_too(make_layout: Any, pairs_row: Any) -> None:
    layout = make_layout([[pairs_row(0)]], caption={"model": "fake"})
    made = CaptionStage(layout)
    made.setup()

    def broken(rows: list[Row]) -> Any:
        raise DataError("broken")

    made.worker.batcher._answer = broken
    with pytest.raises(DataError, match="broken"):
        made.process(Task(0))
    assert torch.get_num_threads() == 2


def test_rows_come_in_order_with_what_was_said(make_layout: Any, picture: Any) -> None:
    layout, fake = make_layout([]), FakeSystem()
    rows = [Row(i, str(i), "web", None, None, True, "ok", image=picture(i)) for i in range(5)]
    rows[3].status = "skipped"
    rows[1].image = b"no image"
    worker = SystemWorker(
        layout.pipeline, "caption", layout.pipeline.score, [fake], lambda some: {row.position: {"n": 1} for row in some}
    )
    found = list(worker.answers(rows))
    assert [row.position for row, _ in found] == [0, 1, 2, 3, 4]
    assert [said for _, said in found] == [{"n": 1}, {}, {"n": 1}, {}, {"n": 1}]
