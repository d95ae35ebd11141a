import logging
import math

import pytest

from capfilt.training.objectives.blip.collapse import COLLAPSE, COLLAPSE_STEPS, CollapseMonitor


def see(monitor: CollapseMonitor, values: list[float]) -> None:
    for step, value in enumerate(values, start=1):
        monitor.update(step, {"itm": value})


def test_the_constant_is_the_entropy_of_one_third() -> None:
    assert pytest.approx(-(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)) == COLLAPSE
    assert pytest.approx(0.6365, abs=1e-4) == COLLAPSE


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_stuck_head_is_told_once(weight: float, caplog: pytest.LogCaptureFixture) -> None:
    noise = [0.001 * (-1) ** i for i in range(1000)]
    with caplog.at_level(logging.WARNING):
        see(CollapseMonitor(weight), [weight * (0.6365 + x) for x in noise])
    assert len(caplog.records) == 1
    assert "the head has collapsed" in caplog.text


@pytest.mark.parametrize(
    ("monitor", "values"),
    [
        (CollapseMonitor(1.0), [0.5] * 1000),
        (CollapseMonitor(1.0), [0.65] * 1000),
        (CollapseMonitor(1.0), [0.6365 - 0.0001 * i for i in range(1000)]),
        (CollapseMonitor(1.0), [0.6365] * (COLLAPSE_STEPS - 1)),
        (CollapseMonitor(1.0, warmup=600), [0.6365] * 800),
        (CollapseMonitor(0.0), [0.6365] * 1000),
    ],
    ids=["below", "above", "falling", "too short", "warm-up", "no itm"],
)
def test_others_are_not(monitor: CollapseMonitor, values: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        see(monitor, values)
    assert not caplog.records


def test_a_resumed_monitor_does_not_warn_again(caplog: pytest.LogCaptureFixture) -> None:
    first, resumed, early = (CollapseMonitor(1.0) for _ in range(3))
    see(first, [0.6365] * (COLLAPSE_STEPS - 1))
    early.restore({"mean": first.mean, "stuck": first.stuck, "told": False})  # as checkpoints had it before
    resumed.restore(first.state())
    assert resumed == first == early
    with caplog.at_level(logging.WARNING):
        see(resumed, [0.6365])
        first.restore(resumed.state())
        see(first, [0.6365])
    assert len(caplog.records) == 1
