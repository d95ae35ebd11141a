"""`capfilt compare`: two runs side by side: settings, texts kept, reasons, verdicts on the same texts, metrics.

A loop's folder stands for its last round; RUN/round-K is one of its rounds. Verdicts are compared of texts that both
runs have: of the same uid and origin, and word for word the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
from rich.console import Group
from rich.table import Table
from rich.text import Text

from capfilt.analysis.sql import check_candidates
from capfilt.errors import DataError
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import open_run, read_json
from capfilt.store.schema import CANDIDATES, ORIGINS

_TEXTS = """
    SELECT origin, count(*), count(*) FILTER (kept) FROM read_parquet($files) WHERE text IS NOT NULL GROUP BY 1"""
_REASONS = "SELECT reason, count(*) FROM read_parquet($files) WHERE NOT kept GROUP BY 1"
_AGREEMENT = """
    SELECT origin, count(*) FILTER (a.kept AND b.kept), count(*) FILTER (a.kept AND NOT b.kept),
           count(*) FILTER (b.kept AND NOT a.kept), count(*) FILTER (NOT a.kept AND NOT b.kept)
    FROM (SELECT DISTINCT uid, origin, text, kept FROM read_parquet($first)) a
    JOIN (SELECT DISTINCT uid, origin, text, kept FROM read_parquet($second)) b USING (uid, origin, text)
    GROUP BY 1"""
_CELLS = ("both kept", "only the first", "only the second", "neither")
_NOT_SETTINGS = ("name", "round")


def compare(first: str | Path, second: str | Path) -> dict[str, Any]:
    """JSON-able; every value is a list of two, the first run's and the second's, None where one has none.

    Returns:
        runs (names as given), settings (only those that differ, by dotted key), texts (origin -> candidates, kept),
        reasons (texts not kept), agreement (origin -> number of texts by who keeps them), metrics.

    Raises:
        DataError: no run there, or one whose `select` is not done.
    """
    folders = [_folder(Path(path)) for path in (first, second)]
    jobs = [open_run(folder).layout for folder in folders]
    files = [_ledger(layout) for layout in jobs]
    with duckdb.connect() as connection:
        texts = [_counts(connection, _TEXTS, some) for some in files]
        reasons = [_counts(connection, _REASONS, some) for some in files]
        both = {"first": files[0], "second": files[1]}
        agreement = {row[0]: row[1:] for row in connection.execute(_AGREEMENT, both).fetchall()}
    settings = [_flat(layout.pipeline.model_dump(mode="json")) for layout in jobs]
    metrics = [_metrics(folder) for folder in folders]
    return {
        "runs": [str(first), str(second)],
        "settings": {key: two for key, two in _beside(settings).items() if two[0] != two[1]},
        "texts": {
            origin: {name: [of.get(origin, (0, 0))[i] for of in texts] for i, name in enumerate(("candidates", "kept"))}
            for origin in ORIGINS
        },
        "reasons": {reason: [(of.get(reason) or (0,))[0] for of in reasons] for reason in _beside(reasons)},
        "agreement": {s: dict(zip(_CELLS, agreement[s], strict=True)) for s in ORIGINS if s in agreement},
        "metrics": _beside(metrics),
    }


def render(found: Mapping[str, Any]) -> Group:
    """For the terminal."""
    runs = ["/".join(Path(run).parts[-2:]) for run in found["runs"]]
    kept = {f"{origin} texts kept": [f"{k:,} of {n:,}" for k, n in zip(of["kept"], of["candidates"], strict=True)]
            for origin, of in found["texts"].items()}  # fmt: skip
    parts = [_table("settings that differ", runs, found["settings"]), _table("texts", runs, kept)]
    parts.append(_table("texts not kept, by reason", runs, found["reasons"]))
    if found["agreement"]:
        parts.append(_table("verdicts on the same texts", list(_CELLS), {s: [*c.values()] for s, c in
                            found["agreement"].items()}))  # fmt: skip
    if found["metrics"]:
        metrics = found["metrics"]
        measured = {key: two for key, two in metrics.items() if key.removesuffix("_ci") + "_ci" in metrics}
        parts.append(_table("metrics", runs, measured))
    return Group(*parts)


def _folder(path: Path) -> Path:
    """A loop's last round, or the run itself."""
    rounds = (read_json(path / "loop.json") or {}).get("rounds", [])
    return path / f"round-{rounds[-1]['round']}" if rounds else path


def _ledger(layout: RunLayout) -> list[str]:
    paths = [layout.shard(CANDIDATES, i) for i in range(len(layout.shards))]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: missing, the run is not finished; `capfilt run` goes on with it")
    check_candidates(paths)
    return [str(path) for path in paths]


def _counts(connection: duckdb.DuckDBPyConnection, asked: str, files: list[str]) -> dict[str, tuple[int, ...]]:
    return {row[0]: row[1:] for row in connection.execute(asked, {"files": files}).fetchall()}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> leaf."""
    if not isinstance(value, dict | list) or not value:
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {k: leaf for name, part in items for k, leaf in _flat(part, f"{key}.{name}" if key else str(name)).items()}
    return {name: leaf for name, leaf in found.items() if name not in _NOT_SETTINGS}


def _metrics(folder: Path) -> dict[str, Any]:
    found = read_json(folder / "evaluate.json") or {}
    return {name: value for name, value in found.items() if name != "fingerprint"}


def _beside(two: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {key: [of.get(key) for of in two] for key in sorted({key for of in two for key in of})}


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> Table:
    """Cells as text: no markup of a stranger's acts."""
    shown = Table("", title=title, title_justify="left")
    for column in columns:
        shown.add_column(Text(column))
    for name, cells in rows.items():
        if not name.endswith("_ci"):
            intervals = rows.get(f"{name}_ci", [None] * len(cells))
            shown.add_row(Text(name), *(Text(_cell(*two)) for two in zip(cells, intervals, strict=True)))
    return shown


def _cell(value: Any, interval: Sequence[float] | None) -> str:
    if isinstance(value, float):
        value = f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
    return "–" if value is None else f"{value:,}" if type(value) is int else str(value)
