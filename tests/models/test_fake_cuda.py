"""The rehearsal on a fake GPU finds tensors left on the CPU, and is otherwise the same computation."""

import pytest
import torch
from torch import Tensor, nn

from tests.models.fake_cuda import CUDA, move, rehearsal


class Good(nn.Module):
    """Adds what it keeps as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)
        self.register_buffer("shift", torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x) + self.shift


class Broken(Good):
    """Adds a plain attribute, which `to` does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.arange(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x) + self.kept


class Forgetful(Good):
    """Makes a tensor on the default device in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x) + torch.arange(3.0)


def test_values_are_the_cpus_and_control_flow_sees_them() -> None:
    model, x = Good(), torch.randn(5, 3)
    want = model(x)
    with rehearsal() as mode:
        out = move(model, mode)(mode.fake(x))
        assert out.device == CUDA
        loss = out.detach()[out > 0].square().sum()
        assert loss.item() == pytest.approx(float(want[want > 0].square().sum()))
        assert out.tolist() == want.tolist()
        rows = (out.sum(1) > 0).nonzero()[:, 0].tolist()
    assert rows == (want.sum(1) > 0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", [Broken, Forgetful])
def test_a_tensor_left_on_the_cpu_is_found(kind: type[Good]) -> None:
    model = kind()
    with rehearsal() as mode:
        move(model, mode)
        with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
            model(mode.fake(torch.randn(5, 3)))
