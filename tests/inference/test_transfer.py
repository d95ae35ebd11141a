"""Pixels on their way to a model: untouched on a CPU, else sent by the decoding threads and awaited by the batch."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from capfilt.inference import rows
from capfilt.inference import transfer as module
from capfilt.inference.rows import Row, model_batches, pixels_of
from capfilt.inference.transfer import GpuTransfer, HostTransfer, together, transfer_to


def row(position: int, image: bytes = b"picture") -> Row:
    return Row(position, str(position), "web", None, None, True, "ok", image=image)


def test_a_cpu_is_passed_the_tensors_themselves() -> None:
    feed = transfer_to(torch.device("cpu"))
    assert isinstance(feed, HostTransfer)
    pixels = torch.rand(3, 4, 4)
    assert feed.send(pixels) is pixels
    feed.arrive([pixels])


class Noted:
    """A feed that writes down what it is asked."""

    def __init__(self) -> None:
        self.sent, self.arrived, self.threads = list[Tensor](), list[int](), set[str]()

    def send(self, pixels: Tensor) -> Tensor:
        self.threads.add(threading.current_thread().name)
        self.sent.append(pixels)
        return -pixels

    def arrive(self, pixels: Sequence[Tensor]) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.arrived.append(len(pixels))


def test_each_model_has_its_feed_and_batches_arrive_before_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = {"cuda": Noted(), "cpu": Noted()}

    def decode(data: bytes, cap: int) -> float:
        if data == b"broken":
            raise rows.ImageError("image_unreadable", "broken")
        return float(data)

    def model(device: str, scale: float) -> Any:
        preprocess = lambda images: torch.full((1, 3, 2, 2), scale * images[0])  # noqa: E731
        return SimpleNamespace(preprocess=preprocess, device=torch.device(device))

    monkeypatch.setattr(rows, "decode_image", decode)
    monkeypatch.setattr(rows, "transfer_to", lambda device: feeds[device.type])
    made = [row(i, b"broken" if i == 2 else b"%d" % i) for i in range(9)]
    for number, batch in enumerate(model_batches(made, 4, [model("cuda", 1), model("cpu", 10)], 100), start=1):
        assert all(len(feed.arrived) == number for feed in feeds.values())
        asked = [one for one in batch if one.status == "ok"]
        for place, scale in enumerate((1, 10)):
            assert pixels_of(asked, place)[:, 0, 0, 0].tolist() == [-scale * one.position for one in asked]
    for feed in feeds.values():
        assert feed.arrived == [3, 4, 1]
        assert len(feed.sent) == 8
        assert all(name.startswith("ThreadPool") for name in feed.threads)


def test_pixels_for_which_there_was_no_room_follow_the_others() -> None:
    """torch's device without memory stands for a GPU."""
    here, there = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2, device="meta")
    assert together([here, there, here]).device.type == "meta"
    assert together([there, there]).shape == (2, 3, 2, 2)
    ours = torch.rand(2, 3, 2, 2)
    assert torch.equal(together(list(ours)), ours)


def test_a_full_device_leaves_pixels_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pinned:
        def to(self, device: torch.device, non_blocking: bool) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    pinned = Pinned()
    monkeypatch.setattr(module, "_copies", lambda device: None)
    pixels: Any = SimpleNamespace(pin_memory=lambda: pinned)
    assert GpuTransfer(torch.device("cuda")).send(pixels) is pinned


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_pixels_come_to_the_gpu_as_they_are() -> None:
    device = torch.device("cuda:0")
    feed = transfer_to(device)
    pixels = list(torch.rand(64, 3, 384, 384))
    sent = [feed.send(one) for one in pixels]
    feed.arrive(sent)
    assert {one.device for one in sent} == {device}
    assert torch.equal(together(sent).cpu(), torch.stack(pixels))
