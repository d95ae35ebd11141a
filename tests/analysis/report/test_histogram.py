"""The counts behind the sliders: exact at every edge, in SQL as in Python, on both scores at once."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capfilt.analysis.report.histogram import BARS, Counts, bars, count
from capfilt.analysis.sql import connect
from capfilt.config.pipeline import SelectSettings
from capfilt.store.layout import RunLayout

build_run: Callable[..., RunLayout] = runpy.run_path(str(Path(__file__).parent / "run_folder.py"))["build_run"]

EDGES = [float(np.float32(k / 200)) for k in range(201)]
NEAR = [float(np.nextafter(np.float32(e), np.float32(way))) for e in EDGES for way in (0, 1)]
ITM = st.one_of(st.floats(0, 1, width=32), st.sampled_from(EDGES + NEAR), st.none())
ITC = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([-1.0000001192092896, 1.0000001192092896, 0.0]), st.none())


def ledger(rows: list[tuple[Any, ...]]) -> duckdb.DuckDBPyConnection:
    """A database whose `candidates` are (origin, itm, itc, kept, reason)."""
    connection = duckdb.connect()
    kinds = [pa.string(), pa.float32(), pa.float32(), pa.bool_(), pa.string()]
    columns = [pa.array([row[k] for row in rows], kind) for k, kind in enumerate(kinds)]
    connection.register("candidates", pa.table(columns, ["origin", "itm", "itc", "kept", "reason"]))
    return connection


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(ITM, ITC), max_size=30), st.floats(0, 1), st.sampled_from(["itm_threshold", "both", "either"])
)
@example([(float(np.float32(0.7)), 0.25), (0.5, float(np.float32(-1e-30)))], 0.7, "both")
@example([(e, None) for e in EDGES[:30]], 0.333, "itm_threshold")
def test_counts_are_exact_at_every_edge(
    scores: list[tuple[float | None, float | None]], own: float, policy: Any
) -> None:
    select = SelectSettings(policy=policy, itm_threshold=own)
    with ledger([("web", itm, itc, True, None) for itm, itc in scores]) as connection:
        counts = count(connection, select)
    for axis, which in ((counts.itm, 0), (counts.itc, 1)):
        values = np.array([score[which] for score in scores if score[which] is not None], dtype=np.float32)
        edges = np.array(axis.edges[1:], dtype=np.float32)
        above = [sum(n for *bins, n in counts.cells.get("web", []) if bins[which] >= k) for k in range(len(axis.edges))]
        assert above == [len(values), *(values[None] >= edges[:, None]).sum(axis=1)]
        assert axis.edges == sorted(set(axis.edges))
        assert sum(counts.marginal("web", axis.score)) == len(values)
    assert counts.itm.edges[counts.itm.at] == float(np.float32(own))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(ITM, ITC), min_size=1, max_size=30), st.floats(0, 1))
def test_sql_and_python_agree_on_bins(scores: list[tuple[float | None, float | None]], own: float) -> None:
    with ledger([("web", itm, itc, True, None) for itm, itc in scores]) as connection:
        counts = count(connection, SelectSettings(policy="both", itm_threshold=own, itc_threshold=-own))
        stored = connection.execute("SELECT itm, itc FROM candidates").fetchall()
    bins: dict[tuple[int, int], int] = {}
    for itm, itc in stored:
        cell = counts.itm.bin(itm), counts.itc.bin(itc)
        bins[cell] = bins.get(cell, 0) + 1
    assert counts.cells["web"] == [(i, j, n) for (i, j), n in sorted(bins.items())]


def test_only_texts_that_a_threshold_decides_on_are_counted() -> None:
    rows = [
        ("web", 0.9, 0.1, True, None),
        ("web", 0.2, 0.1, False, "below_itm_threshold"),
        ("web", 0.9, 0.1, False, "duplicate:exact"),
        ("web", 0.9, 0.1, False, "over_max_texts"),
        ("synthetic", 0.2, 0.1, False, "below_both"),
    ]
    with ledger(rows) as connection:
        cells = count(connection, SelectSettings()).cells
    assert {origin: sum(n for *_, n in found) for origin, found in cells.items()} == {"web": 2, "synthetic": 1}


@pytest.mark.parametrize("policy", ["top_k", "keep_all"])
def test_without_thresholds_the_sliders_begin_at_the_left(policy: Any) -> None:
    with ledger([("web", 0.9, -0.15, True, None), ("web", 0.1, 0.33, True, None)]) as connection:
        counts = count(connection, SelectSettings(policy=policy))
    assert (counts.itm.at, counts.itc.at) == (0, 0)
    assert (counts.itc.low, counts.itc.high) == (-0.2, 0.4)


def test_the_axis_holds_the_threshold_of_the_run() -> None:
    with ledger([("web", None, 0.31, True, None)]) as connection:
        itc = count(connection, SelectSettings(policy="itc_threshold", itc_threshold=-0.456)).itc
    assert itc.low == -0.5
    assert itc.edges[itc.at] == float(np.float32(-0.456))
    assert itc.at not in (0, len(itc.edges) - 1)


def test_an_empty_ledger() -> None:
    with ledger([]) as connection:
        counts = count(connection, SelectSettings())
    assert counts.cells == {}
    assert bars(counts.marginal("web", "itm")) == ""


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200))
@example([999956021, 999954030])  # heights that differ by less than any pixel
def test_bars_stay_in_the_box_and_none_is_invisible(steps: list[int]) -> None:
    found = re.findall(r"M([\d.]+) 100V([\d.]+)H([\d.]+)V100Z", bars(steps))
    several = -(-len(steps) // BARS)
    assert len(found) == sum(any(steps[k : k + several]) for k in range(0, len(steps), several))
    for left, top, right in found:
        assert 0 <= float(left) < float(right) <= 1000
        assert 0 <= float(top) <= 99


def test_a_real_run_counts_what_its_ledger_has(tmp_path: Path) -> None:
    layout = build_run(tmp_path)
    with connect(layout) as connection:
        counts: Counts = count(connection, layout.pipeline.select)
        kept = connection.execute("SELECT count(*) FROM candidates WHERE kept AND origin = 'web'").fetchall()[0][0]
    assert sum(n for i, _, n in counts.cells["web"] if i >= counts.itm.at) == kept
