"""Prepared images on their way to a system: untouched on a CPU, else sent by decoding threads, awaited by the batch."""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from capfilt.inference import rows
from capfilt.inference import transfer as module
from capfilt.inference.rows import Row, model_batches, prepared_of
from capfilt.inference.transfer import GpuTransfer, HostTransfer, transfer_to
from capfilt.models.protocols import Prepared
from capfilt.models.tensors import stack


def row(position: int, image: bytes = b"picture") -> Row:
    return Row(position, str(position), "web", None, None, True, "ok", image=image)


def test_a_cpu_is_passed_what_was_prepared() -> None:
    transfer = transfer_to(torch.device("cpu"))
    assert isinstance(transfer, HostTransfer)
    prepared = {"pixels": torch.rand(3, 4, 4)}
    assert transfer.send(prepared) is prepared
    transfer.arrive([prepared])


class Noted:
    """A transfer that writes down what it is asked."""

    def __init__(self) -> None:
        self.sent, self.arrived, self.threads = list[Prepared](), list[int](), set[str]()

    def send(self, prepared: Prepared) -> Prepared:
        self.threads.add(threading.current_thread().name)
        self.sent.append(prepared)
        return bytes(reversed(prepared)) if isinstance(prepared, bytes) else prepared

    def arrive(self, prepared: Sequence[Prepared]) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.arrived.append(len(prepared))


def test_each_system_has_its_transfer_and_batches_arrive_before_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = {"cuda": Noted(), "cpu": Noted()}

    def decode(data: bytes, cap: int) -> float:
        if data == b"broken":
            raise rows.ImageError("image_unreadable", "broken")
        return float(data)

    def system(device: str, name: bytes) -> Any:
        prepare = lambda image, data: name + b"%d" % image + data  # noqa: E731
        return SimpleNamespace(prepare=prepare, device=torch.device(device))

    monkeypatch.setattr(rows, "decode_image", decode)
    monkeypatch.setattr(rows, "transfer_to", lambda device: transfers[device.type])
    made = [row(i, b"broken" if i == 2 else b"%d" % i) for i in range(9)]
    for number, batch in enumerate(model_batches(made, 4, [system("cuda", b"a"), system("cpu", b"b")], 100), start=1):
        assert all(len(transfer.arrived) == number for transfer in transfers.values())
        asked = [one for one in batch if one.status == "ok"]
        for place, name in enumerate("ab"):
            assert prepared_of(asked, place) == [b"%d%d%c" % (one.position, one.position, ord(name)) for one in asked]
    for transfer in transfers.values():
        assert transfer.arrived == [3, 4, 1]
        assert len(transfer.sent) == 8
        assert all(name.startswith("ThreadPool") for name in transfer.threads)


def test_a_full_device_leaves_tensors_pinned_and_bytes_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pinned:
        def to(self, device: torch.device, non_blocking: bool) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    pinned = Pinned()
    monkeypatch.setattr(module, "_copies", lambda device: None)
    pixels: Any = SimpleNamespace(pin_memory=lambda: pinned)
    transfer = GpuTransfer(torch.device("cuda"))
    assert transfer.send({"pixels": pixels}) == {"pixels": pinned}
    assert transfer.send(b"a file") == b"a file"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_pixels_come_to_the_gpu_as_they_are() -> None:
    device = torch.device("cuda:0")
    transfer = transfer_to(device)
    pixels = list(torch.rand(64, 3, 384, 384))
    sent = [transfer.send({"pixels": one}) for one in pixels]
    transfer.arrive(sent)
    together = stack(sent, "pixels")
    assert together.device == device
    assert torch.equal(together.cpu(), torch.stack(pixels))
