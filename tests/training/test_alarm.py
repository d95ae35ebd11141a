import logging
import math

import pytest
import torch

from capfilt.errors import TrainingError
from capfilt.training.alarm import COLLAPSE, COLLAPSE_STEPS, CollapseAlarm, check_gradient, check_losses


def see(alarm: CollapseAlarm, values: list[float]) -> None:
    for step, value in enumerate(values, start=1):
        alarm.see(step, {"itm": value})


def test_the_constant_is_the_entropy_of_one_third() -> None:
    assert pytest.approx(-(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)) == COLLAPSE
    assert pytest.approx(0.6365, abs=1e-4) == COLLAPSE


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_stuck_head_is_told_once(weight: float, caplog: pytest.LogCaptureFixture) -> None:
    noise = [0.001 * (-1) ** i for i in range(1000)]
    with caplog.at_level(logging.WARNING):
        see(CollapseAlarm(weight), [weight * (0.6365 + x) for x in noise])
    assert len(caplog.records) == 1
    assert "the head has collapsed" in caplog.text


@pytest.mark.parametrize(
    ("alarm", "values"),
    [
        (CollapseAlarm(1.0), [0.5] * 1000),
        (CollapseAlarm(1.0), [0.65] * 1000),
        (CollapseAlarm(1.0), [0.6365 - 0.0001 * i for i in range(1000)]),
        (CollapseAlarm(1.0), [0.6365] * (COLLAPSE_STEPS - 1)),
        (CollapseAlarm(1.0, warmup=600), [0.6365] * 800),
        (CollapseAlarm(0.0), [0.6365] * 1000),
    ],
    ids=["below", "above", "falling", "too short", "warm-up", "no itm"],
)
def test_others_are_not(alarm: CollapseAlarm, values: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        see(alarm, values)
    assert not caplog.records


def test_losses_and_gradients_must_be_finite() -> None:
    check_losses({"itc": 1.0}, {"itc": torch.tensor(1.0)}, ["a"], 1)
    check_gradient(1.0, ["a"])
    with pytest.raises(TrainingError, match=r"the loss itm is not finite; rows of this batch: a, b\. Lower optim.lr"):
        check_losses({"itc": 1.0, "itm": math.inf}, {"itm": torch.tensor(math.inf)}, ["a", "b"], 1)
    with pytest.raises(TrainingError, match="the gradient is not finite; rows of this step: a"):
        check_gradient(math.nan, ["a"])
