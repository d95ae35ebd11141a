"""A graph's bookkeeping, without a GPU: its buffers are its own, and what it gave is the caller's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from capfilt.models import graphed
from capfilt.models.graphed import Graphed


class Counter:
    """Adds a place of its memory to x and writes there; gives the same tensor each time, as a captured call does."""

    def __init__(self) -> None:
        self.memory, self.out, self.seen = torch.zeros(4), torch.zeros(2), list[int]()

    def __call__(self, x: Tensor, place: Tensor) -> Tensor:
        self.seen += [x.data_ptr(), place.data_ptr()]
        self.memory.index_add_(0, place, x.sum()[None])
        return torch.add(x, self.memory[place], out=self.out)


def test_inputs_are_copied_to_where_the_call_reads_them() -> None:
    call = Counter()
    x, place = torch.tensor([1.0, 2.0]), torch.tensor([3])
    run = Graphed(call, x, place)
    assert run(x, place).tolist() == [4, 5]
    x += 10
    assert run(x * 2, place - 1).tolist() == [68, 70]
    assert x.tolist() == [11, 12]
    assert call.memory.tolist() == [0, 0, 46, 3]
    assert len(set(call.seen)) == 2
    assert not {x.data_ptr(), place.data_ptr()} & set(call.seen)


def test_what_it_gave_stays_as_it_is() -> None:
    run = Graphed(Counter(), torch.zeros(2), torch.tensor([0]))
    first = run(torch.tensor([1.0, 2.0]), torch.tensor([0]))
    kept = first.clone()
    second = run(first, torch.tensor([1]))
    assert torch.equal(first, kept)
    assert second.tolist() != kept.tolist()


@pytest.mark.parametrize("wrong", [torch.zeros(1), torch.zeros(1, 2), torch.zeros(3)])
def test_another_shape_is_no_input(wrong: Tensor) -> None:
    """Not even one that could be broadcast."""
    with pytest.raises(AssertionError, match="where"):
        Graphed(Counter(), torch.zeros(2), torch.tensor([0]))(wrong, torch.tensor([0]))


def test_on_a_gpu_it_is_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a capture that only notes the call: what is replayed reads and writes where the capture did."""
    captures = 0

    class Pretended(Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda")

    def captured(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        nonlocal captures
        captures += 1
        output = call()

        def replay() -> Tensor:
            call()
            return output

        return replay

    monkeypatch.setattr(graphed, "_captured", captured)
    call = Counter()
    run = Graphed(call, torch.zeros(2).as_subclass(Pretended), torch.tensor([0]))
    gave = [run(torch.tensor([float(i), 0.0]), torch.tensor([0])).tolist() for i in (1, 2, 3)]
    assert gave == [[2, 1], [5, 3], [9, 6]]
    assert captures == 1
    assert len(set(call.seen)) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_replay_is_the_call() -> None:
    weight = torch.randn(8, 8, device="cuda")
    memory = torch.zeros(4, 2, 8, device="cuda")

    def call(x: Tensor, place: Tensor) -> Tensor:
        memory.index_copy_(0, place, (x @ weight)[None])
        return memory.sum(0).relu()

    places = torch.arange(4, device="cuda")
    run = Graphed(call, torch.zeros(2, 8, device="cuda"), places[:1])
    xs = [torch.randn(2, 8, device="cuda") for _ in range(4)]
    memory.zero_()
    eager = [call(x, places[i : i + 1]).clone() for i, x in enumerate(xs)]
    memory.zero_()
    replayed = [run(x, places[i : i + 1]) for i, x in enumerate(xs)]
    for one, other in zip(eager, replayed, strict=True):
        torch.testing.assert_close(one, other)
