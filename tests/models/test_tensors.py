"""Prepared images become one tensor, and states must be one."""

import pytest
import torch

from capfilt.errors import InputError
from capfilt.models.tensors import stack, tensor_of


def test_images_for_which_there_was_no_room_follow_the_others() -> None:
    """torch's device without memory stands for a GPU."""
    here, there = {"x": torch.zeros(3, 2, 2)}, {"x": torch.zeros(3, 2, 2, device="meta")}
    assert stack([here, there, here], "x").device.type == "meta"
    assert stack([there, there], "x").shape == (2, 3, 2, 2)
    ours = torch.rand(2, 3, 2, 2)
    assert torch.equal(stack([{"x": one} for one in ours], "x"), ours)


def test_what_another_system_made_is_refused() -> None:
    with pytest.raises(InputError, match="2 images, 1 of them with 'x'"):
        stack([{"x": torch.zeros(1)}, b"file"], "x")
    with pytest.raises(InputError, match="0 images"):
        stack([], "x")
    with pytest.raises(InputError, match="states are bytes, not a tensor"):
        tensor_of(b"states")  # type: ignore[arg-type]
