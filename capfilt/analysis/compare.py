"""`capfilt compare`: compares two runs: settings, texts kept, reasons, verdicts on the same texts, metrics.

If a run has several rounds, its last one is compared; RUN/round-K names another one. Verdicts are compared on texts
that both runs have: the same text of the same uid and origin.
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
    """Compare two runs. Except in `agreement`, each value is a list [first, second], with None where a run has none.

    Returns:
        JSON values. runs: the arguments. settings: those that differ, by dotted key. texts: origin -> numbers of
        candidates and of kept ones. reasons: reason -> number of texts not kept. agreement: origin -> number of texts
        that both, only the first, only the second or neither keeps. metrics: those of `evaluate`, by name.

    Raises:
        DataError: a folder is no run, or its `select` has not finished.
    """
    folders = [_folder(Path(path)) for path in (first, second)]
    layouts = [open_run(folder).layout for folder in folders]
    files = [_candidates(layout) for layout in layouts]
    with duckdb.connect() as connection:
        texts = [_counts(connection, _TEXTS, paths) for paths in files]
        reasons = [_counts(connection, _REASONS, paths) for paths in files]
        both = {"first": files[0], "second": files[1]}
        agreement = {row[0]: row[1:] for row in connection.execute(_AGREEMENT, both).fetchall()}
    settings = [_flat(layout.pipeline.model_dump(mode="json")) for layout in layouts]
    metrics = [_metrics(folder) for folder in folders]
    return {
        "runs": [str(first), str(second)],
        "settings": {key: two for key, two in _side_by_side(settings).items() if two[0] != two[1]},
        "texts": {
            origin: {name: [of.get(origin, (0, 0))[i] for of in texts] for i, name in enumerate(("candidates", "kept"))}
            for origin in ORIGINS
        },
        "reasons": {reason: [(of.get(reason) or (0,))[0] for of in reasons] for reason in _side_by_side(reasons)},
        "agreement": {s: dict(zip(_CELLS, agreement[s], strict=True)) for s in ORIGINS if s in agreement},
        "metrics": _side_by_side(metrics),
    }


def render(found: Mapping[str, Any]) -> Group:
    """Format the result of `compare` for the terminal."""
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
    """Return the folder of the last round, or of the run itself if it has no rounds."""
    rounds = (read_json(path / "loop.json") or {}).get("rounds", [])
    return path / f"round-{rounds[-1]['round']}" if rounds else path


def _candidates(layout: RunLayout) -> list[str]:
    paths = [layout.shard(CANDIDATES, i) for i in range(len(layout.shards))]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: missing, because the run is not finished; `capfilt run` continues it")
    check_candidates(paths)
    return [str(path) for path in paths]


def _counts(connection: duckdb.DuckDBPyConnection, query: str, files: list[str]) -> dict[str, tuple[int, ...]]:
    return {row[0]: row[1:] for row in connection.execute(query, {"files": files}).fetchall()}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return dotted key -> value, for the values of nested mappings and lists."""
    if not isinstance(value, dict | list) or not value:
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {k: leaf for name, part in items for k, leaf in _flat(part, f"{key}.{name}" if key else str(name)).items()}
    return {name: leaf for name, leaf in found.items() if name not in _NOT_SETTINGS}


def _metrics(folder: Path) -> dict[str, Any]:
    found = read_json(folder / "evaluate.json") or {}
    return {name: value for name, value in found.items() if name != "fingerprint"}


def _side_by_side(two: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return key -> [value in the first mapping, value in the second], None where it is missing."""
    return {key: [of.get(key) for of in two] for key in sorted({key for of in two for key in of})}


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> Table:
    """Format rows as a table. Cells are plain text, so that markup in untrusted data has no effect."""
    table = Table("", title=title, title_justify="left")
    for column in columns:
        table.add_column(Text(column))
    for name, cells in rows.items():
        if not name.endswith("_ci"):
            intervals = rows.get(f"{name}_ci", [None] * len(cells))
            table.add_row(Text(name), *(Text(_cell(*two)) for two in zip(cells, intervals, strict=True)))
    return table


def _cell(value: Any, interval: Sequence[float] | None) -> str:
    if isinstance(value, float):
        value = f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
    return "–" if value is None else f"{value:,}" if type(value) is int else str(value)
