"""SQL over a run: views, types, errors, and that nothing but the run's files can be read."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from capfilt.analysis.sql import cell, connect, plain, query, render, views, visible
from capfilt.errors import DataError, InputError
from capfilt.store.layout import RunLayout

build_run: Callable[..., RunLayout] = runpy.run_path(str(Path(__file__).parent / "report" / "run_folder.py"))[
    "build_run"
]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return build_run(tmp_path_factory.mktemp("a 'run' [1]") / "run")


def test_views_join_by_uid(layout: RunLayout) -> None:
    text = """
        SELECT p.role, count(*) AS n, count(c.itm) AS judged, count(s.image_embedding[4]) AS embedded
        FROM pairs p JOIN candidates c USING (uid) JOIN scores s USING (uid) JOIN captions USING (uid)
        JOIN duplicates d USING (uid) GROUP BY ALL ORDER BY 1"""
    columns, rows = query(layout, text)
    assert columns == ["role", "n", "judged", "embedded"]
    assert rows == [("human", 4, 4, 4), ("web", 127, 119, 119)]


def test_a_stage_that_has_not_written_has_no_view(tmp_path: Path) -> None:
    layout = build_run(tmp_path, leave_out=("caption", "score", "dedup"))
    with connect(layout) as connection:
        found = views(connection)
    assert list(found) == ["pairs", "duplicates", "candidates"]
    assert found["duplicates"][-1] == "contaminates"  # near's marks, in dedup's shape


def test_an_orphan_shard_is_not_read(tmp_path: Path) -> None:
    layout = build_run(tmp_path)
    (layout.folder("ingest") / "00002.parquet").write_bytes(b"left over")
    assert query(layout, "SELECT count(*) FROM pairs").rows == [(72,)]


def test_dataset_is_what_was_emitted(tmp_path: Path) -> None:
    layout = build_run(tmp_path)
    target = tmp_path / "dataset" / "data" / "train-00000-of-00001.parquet"
    target.parent.mkdir(parents=True)
    target.write_bytes(layout.shard("select", 0).read_bytes())
    assert query(layout, "SELECT count(*) FROM dataset JOIN candidates USING (uid, origin)").rows == [(72,)]


def test_values_fill_the_query(layout: RunLayout) -> None:
    assert query(layout, "SELECT $a || 'x', $b + 1", {"a": "'; DROP", "b": 2}).rows == [("'; DROPx", 3)]
    assert query(layout, "DESCRIBE pairs").rows[0][0] == "uid"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SELECT nope FROM pairs", "nope"),
        ("SELECT * FROM nowhere", "candidates: uid, text, origin"),
        ("SELEC 1", "syntax error"),
        ("", "one SELECT"),
        ("SELECT 1; SELECT 2", "one SELECT"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO 'x'", "one SELECT"),
        ("SET lock_configuration = false", "one SELECT"),
        ("SELECT * FROM read_text('/etc/hostname')", "disabled"),
        ("SELECT * FROM '/etc/passwd'", "passwd"),
        ("SELECT * FROM glob('/*')", "disabled"),
    ],
)
def test_queries_that_are_refused(layout: RunLayout, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        query(layout, text)


def test_no_query_writes_over_a_shard(layout: RunLayout) -> None:
    shard = layout.shard("ingest", 0).resolve()
    before = shard.read_bytes()
    with pytest.raises(InputError):
        query(layout, "COPY (SELECT 1) TO '" + str(shard).replace("'", "''") + "' (FORMAT parquet)")
    assert shard.read_bytes() == before


def test_a_damaged_shard_is_an_error_for_users(tmp_path: Path) -> None:
    layout = build_run(tmp_path)
    shard = layout.shard("select", 1)
    shard.write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"00001\.parquet"):
        query(layout, "SELECT * FROM candidates")
    layout.shard("select", 0).write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="candidates-e"):
        query(layout, "SELECT * FROM candidates")


def test_candidates_of_an_earlier_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    layout = build_run(tmp_path)
    for shard in range(2):
        path = layout.shard("select", shard)
        old = pq.read_table(path)
        pq.write_table(old.rename_columns(["source" if n == "origin" else n for n in old.column_names]), path)
    with pytest.raises(
        DataError, match=r"candidates-e: written by an earlier version .* `capfilt run` of its pipeline"
    ):
        query(layout, "SELECT 1")


def test_cells_are_harmless_in_a_terminal(layout: RunLayout) -> None:
    console = Console(width=200, record=True, force_terminal=True)
    rows = query(layout, "SELECT uid, text, image, itm FROM pairs LEFT JOIN candidates USING (uid, text) LIMIT 80").rows
    console.print(render(["uid", "text", "image", "itm"], rows))
    shown = console.export_text(styles=False)
    assert "[bold red]markup[/] \ufffd[31mcolour\ufffd" in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert " bytes>" in shown


def test_visible_keeps_what_scripts_and_emoji_are_made_of() -> None:
    text = "ना\u200dम 👩\u200d🚀 é"
    assert visible(text) == text
    assert visible("a\u2029b\u2066c\x00\td") == "a b\ufffdc\ufffd d"


def test_cell_and_plain() -> None:
    assert cell("x" * 80).plain == "x" * 59 + "…"
    assert cell("x" * 60).plain == "x" * 60
    assert [cell(value).plain for value in (None, 0.123456, 7, "a\nb")] == ["-", "0.1235", "7", "a b"]
    assert plain({"bytes": b"abc", "n": [1, (2.5, None)]}) == {"bytes": "<3 bytes>", "n": [1, [2.5, None]]}
