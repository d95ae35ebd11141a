"""How many images a model is given at once: what the probe finds, and what becomes of a batch that does not fit."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from capfilt.config.pipeline import ModelSettings
from capfilt.errors import CheckpointError, ConfigError
from capfilt.inference import batching
from capfilt.inference.batching import FIRST, LAST, ON_CPU, AdaptiveBatcher, ThreadLanes, batch_size, probe
from capfilt.inference.rows import Record, Row
from capfilt.models.fake import FakeSystem
from capfilt.stages.base import Task
from capfilt.stages.caption_score import CaptionScoreStage

FULL = "[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


def rows(count: int) -> list[Row]:
    made = [Row(i, f"{i:016x}", "web", "a", None, True, "ok") for i in range(count)]
    for row in made:
        row.prepared = [b"image"]
    return made


class Model:
    """Answers for `room` rows at once."""

    def __init__(self, room: int, error: Exception | None = None) -> None:
        self.room, self.error, self.asked = room, error or RuntimeError(FULL), list[int]()

    def __call__(self, piece: list[Row]) -> dict[int, Record]:
        self.asked.append(len(piece))
        if len(piece) > self.room:
            raise self.error
        return {row.position: {"images": len(row.prepared)} for row in piece}


@pytest.mark.parametrize("error", [RuntimeError(FULL), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_a_batch_that_does_not_fit_is_halved_and_so_are_the_next(error: Exception) -> None:
    model = Model(5, error)
    pieces, batch = AdaptiveBatcher(model), rows(13)
    batch[3].status = "failed"
    assert pieces(batch) == {i: {"images": 1} for i in range(13) if i != 3}
    assert model.asked == [12, 6, 3, 3, 3, 3]
    assert [len(row.prepared) for row in batch] == [1 if i == 3 else 0 for i in range(13)]
    model.asked.clear()
    assert set(pieces(rows(4))) == {0, 1, 2, 3}
    assert model.asked == [3, 1]
    assert pieces([]) == {}


def test_one_image_that_does_not_fit_is_told() -> None:
    with pytest.raises(ConfigError, match=r"memory ran out on one image \(0{16}\): .*alloc.*caption.samples"):
        AdaptiveBatcher(Model(0))(rows(3))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), CheckpointError("weights"), ConfigError(FULL)])
def test_other_errors_are_raised(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)[:5].replace("[", r"\[")):
        AdaptiveBatcher(Model(0, error))(rows(3))


@pytest.mark.parametrize(
    ("fixed", "each", "room", "best"),
    [(10.0, 0.01, 10**6, LAST), (0.0, 1.0, 10**6, FIRST), (16.0, 1.0, 10**6, 256), (10.0, 0.01, 100, 64), (1, 1, 8, 8)],
)
def test_the_probe_stops_where_more_images_do_not_pay_or_fit(fixed: float, each: float, room: int, best: int) -> None:
    def seconds(images: int) -> float:
        if images > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return fixed + each * images

    assert probe(seconds) == best


def test_the_probe_hides_no_bug() -> None:
    def seconds(images: int) -> float:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        probe(seconds)


def test_a_number_is_taken_auto_is_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSystem()
    assert batch_size(ModelSettings(model="m", batch_size=3), [fake], Model(0)) == 3
    auto = ModelSettings(model="m")
    assert batch_size(auto, [fake], Model(0)) == ON_CPU
    one = fake.bytes_per_image
    for free, size in ((0, 1), (8 * 5 * one, 5), (8 * 5 * one - 1, 4)):
        monkeypatch.setattr(batching, "_available", lambda free=free: free)
        assert batch_size(auto, [fake], Model(0)) == size
    assert batch_size(auto, [fake, fake], Model(0)) == 2


def test_a_gpu_is_probed_with_blank_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, but for the device: the stage's own work is timed."""
    sizes = list[int]()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(batching, "LAST", 16)
    prepare = lambda image, data: {"pixels": torch.zeros(3, *image.size)} if data[1:4] == b"PNG" else {}  # noqa: E731
    model: Any = SimpleNamespace(device=torch.device("cuda"), prepare=prepare)

    def answer(piece: list[Row]) -> dict[int, Record]:
        sizes.append(len(piece))
        assert all(one["pixels"].shape == (3, 384, 384) for row in piece for one in row.prepared)
        assert all(len(row.prepared) == 2 for row in piece)
        return {}

    assert batch_size(ModelSettings(model="m"), [model, model], answer) in (8, 16)
    assert sizes == [8, 8, 16, 16]


def test_both_stages_answer_in_halves_with_the_same_bytes(make_layout: Any, pairs_row: Any) -> None:
    made = [pairs_row(i) for i in range(7)]
    quick = {"max_length": 8, "min_length": 5}
    found = []
    for name, room in (("whole", 7), ("halves", 2)):
        layout = make_layout([made], name=name, caption={"decoding": quick})
        stage = CaptionScoreStage(layout)
        stage.setup()
        real = stage.answer

        def narrow(piece: list[Row], room: int = room, real: Any = real) -> dict[int, Record]:
            answers: dict[int, Record] = real(piece)
            if len(piece) > room:
                raise RuntimeError(FULL)
            return answers

        stage.worker.batcher = AdaptiveBatcher(narrow)
        stage.process(Task(0))
        found.append([layout.shard(part, 0).read_bytes() for part in ("caption", "score")])
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_lanes_share_out_in_order_and_raise_when_all_have_ended(count: int) -> None:
    lanes, threads, ended = ThreadLanes(count), set[int](), list[int]()

    def work(items: list[int]) -> list[int]:
        threads.add(torch.get_num_threads())
        if 3 in items:
            raise MemoryError
        ended.extend(items)
        return items

    assert [i for part in lanes.map(work, [0, 1, 2]) for i in part] == [0, 1, 2]
    assert count == 1 or threads == {1}
    ended.clear()
    with pytest.raises(MemoryError):
        lanes.map(work, list(range(8)))
    failed = next(part for part in (range(i * 8 // count, (i + 1) * 8 // count) for i in range(count)) if 3 in part)
    assert sorted(ended) == [item for item in range(8) if item not in failed]


def test_caches_are_freed_where_memory_ran_out() -> None:
    class Cached(FakeSystem):
        released = 0

        def release(self) -> None:
            self.released += 1

    systems = [Cached(), Cached()]
    AdaptiveBatcher(Model(5), systems=systems)(rows(13))
    assert [system.released for system in systems] == [2, 2]

    def seconds(images: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert probe(seconds, systems) == FIRST
    assert [system.released for system in systems] == [3, 3]
