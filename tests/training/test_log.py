import json
import math
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from capfilt.training.log import Log, Window, truncate


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def run(
    out: Path, first: int, last: int, every: int = 2, window: Window | None = None, on: bool = True
) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    with Log(out, 10, first, on, seen.append, window) as log:
        for step in range(first + 1, last + 1):
            log.step(step, 0, {"loss": float(step), "lm": 1.0}, batch=4, every=every)
    return seen


def test_lines_are_means_since_the_last_and_the_last_step_has_one(tmp_path: Path) -> None:
    seen = run(tmp_path, 0, 10, every=4)
    assert seen == lines(tmp_path)
    assert [(line["step"], line["loss"], line["lm"]) for line in seen] == [(4, 2.5, 1), (8, 6.5, 1), (10, 9.5, 1)]
    assert all(line["pairs_s"] > 0 for line in seen)


def test_a_resumed_log_has_each_step_once(tmp_path: Path) -> None:
    run(tmp_path, 0, 6)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 7, "los')
    run(tmp_path, 4, 10)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8, 10]
    run(tmp_path, 0, 2)
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_a_window_carries_what_was_not_yet_told(tmp_path: Path) -> None:
    window = Window()
    window.add({"loss": 4.0, "lm": 3.0})
    (line,) = run(tmp_path, 5, 6, window=window)
    assert (line["loss"], line["lm"]) == (5.0, 2.0)
    assert window == Window()


def test_truncate_keeps_validation_at_the_checkpoints_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    truncate(path, 3)
    assert not path.exists()
    path.write_text('{"step": 3}\n{"step": 3, "val_x": 1}\n{"step": 4}\n[]\n')
    truncate(path, 3)
    assert path.read_text() == '{"step": 3}\n{"step": 3, "val_x": 1}\n'


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "x", 0, 4, on=False)
    assert not (tmp_path / "x").exists()


def test_events_hold_the_same_numbers(tmp_path: Path) -> None:
    run(tmp_path, 0, 4)
    (file,) = (tmp_path / "events").iterdir()
    found = {(v.tag, e.step): v.simple_value for e in events(file.read_bytes()) for v in e.summary.value}
    assert found["loss", 2] == pytest.approx(1.5)
    assert found["loss", 4] == pytest.approx(3.5)
    assert all(math.isfinite(value) for value in found.values())


def events(data: bytes) -> list[Any]:
    """TFRecord: length, crc, payload, crc."""
    found = []
    while data:
        length = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found
