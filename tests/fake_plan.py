"""A plan over the stages of `tests/fake_stages.py`."""

from pathlib import Path
from typing import Any

from capfilt.config.load import validate
from capfilt.engine.steps import Plan, Step
from capfilt.store.layout import RunLayout, ShardSpec
from tests.fake_stages import FAKES, ROWS


def fake_plan(run: Path, orders: str = "fine", shards: int = 6, **resources: dict[str, Any]) -> Plan:
    """A plan over the three stages."""
    raw = {
        "name": orders,
        "sources": [{"type": "parquet", "path": "none"}],
        "select": {"policy": "keep_all"},
        "dedup": {"semantic": None},
        "resources": resources,
    }
    specs = tuple(ShardSpec("none", "", i * ROWS, (i + 1) * ROWS) for i in range(shards))
    folders = {"ingest": "pairs", "caption": "caption", "emit": "dataset"}
    layout = RunLayout(validate(raw, "test"), run, specs, folders)
    run.mkdir(parents=True, exist_ok=True)
    todo = {stage: (0,) if stage.spec.tasks == "one" else tuple(range(shards)) for stage in FAKES}
    return Plan(layout, tuple(Step(stage, "f", {}, todo[stage], "new") for stage in FAKES))


def expected(shards: int = 6) -> str:
    """What `joined` holds where nothing went wrong."""
    return "\n".join(f"ROW {i} {j}" for i in range(shards) for j in range(ROWS))
