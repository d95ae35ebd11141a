"""Ingest: every row comes out, with a verdict; what is stored; equal bytes; rows that kill."""

import hashlib
import json
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from capfilt.config.load import validate
from capfilt.errors import ConfigError
from capfilt.sources import open_source
from capfilt.stages import ingest
from capfilt.stages.base import Task
from capfilt.stages.ingest import IngestStage, row_uid
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter
from capfilt.store.schema import PAIRS, arrow
from capfilt.store.shards import manifest

Row = dict[str, Any]
Take = Callable[..., list[Row]]


def encode(width: int = 40, height: int = 30, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, dtype=np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


GOOD = encode()


def run(path: Path, out: Path, kind: str = "parquet", role: str = "web", only: range | None = None,
        skip: frozenset[int] = frozenset(), **rules: Any) -> RunLayout:  # fmt: skip
    """Ingest everything at `path`."""
    source = {"type": kind, "path": str(path), "name": "web", "role": role}
    raw = {"sources": [source], "ingest": rules, "select": {"policy": "keep_all"}, "dedup": {"semantic": None}}
    pipeline = validate(raw, "test")
    units = tuple(open_source(pipeline.sources[0]).shard_specs(pipeline.ingest.rows_per_shard))
    layout = RunLayout(pipeline, out, units, {"ingest": "pairs"})
    stage = IngestStage(layout)
    stage.setup()
    for shard in range(len(units)):
        stage.process(Task(shard, RowFilter(skip, only)))
    return layout


def stored(layout: RunLayout) -> list[Row]:
    return [
        row for shard in range(len(layout.shards)) for row in pq.read_table(layout.shard("ingest", shard)).to_pylist()
    ]


@pytest.fixture
def take(tmp_path: Path) -> Take:
    """take([(image, text), ...], more={"url": [...]}, **rules): the stored rows."""

    def make(
        rows: list[tuple[bytes | None, object]], more: dict[str, list[Any]] | None = None, **rules: Any
    ) -> list[Row]:
        table = {"image": pa.array([r[0] for r in rows], pa.binary()), "text": pa.array([r[1] for r in rows])}
        pq.write_table(pa.table(table | (more or {})), tmp_path / "in.parquet")
        return stored(run(tmp_path / "in.parquet", tmp_path / "run", **rules))

    return make


def test_a_good_row(take: Take) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(40, 30, "JPEG", exif=exif)
    (row,) = take([(data, " a cat ")], {"key": ["k"], "url": ["https://a.example"], "NSFW": ["no"], "punsafe": [0.5]})
    assert row["uid"] == row_uid("web", "k") == hashlib.sha256(b'["web", "k"]').hexdigest()[:16]
    assert (row["source"], row["role"], row["key"], row["url"]) == ("web", "web", "k", "https://a.example")
    assert (row["text"], row["meta"]) == (" a cat ", '{"nsfw": "no", "punsafe": 0.5}')
    assert row["image"] == {"bytes": data, "path": None}
    assert (row["width"], row["height"], row["format"]) == (30, 40, "JPEG")
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    upright = Image.open(BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    assert row["pixels_sha256"] == hashlib.sha256(b"30 40 " + upright.tobytes()).hexdigest()
    assert isinstance(row["phash"], int)
    assert (row["status"], row["reason"], row["error"]) == ("ok", None, None)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, "image_missing"),
        (b"", "image_missing"),
        (bytes(5000), "too_many_bytes"),
        (encode(200, 200), "bomb"),
        (b"<html>", "image_unreadable"),
        (GOOD[:60], "image_unreadable"),
        (encode(kind="BMP")[:4000], "image_unreadable"),
    ],
)
def test_images_that_cannot_be_processed_are_quarantined(image: bytes | None, reason: str, take: Take) -> None:
    row, good = take([(image, "a"), (GOOD, "b")], max_bytes=4500, max_pixels=39_999)
    assert (row["status"], row["reason"], row["image"], row["text"]) == ("quarantined", reason, None, "a")
    assert row["error"]
    assert (row["sha256"] is None) == (reason in ("image_missing", "too_many_bytes"))
    assert good["status"] == "ok"


@pytest.mark.parametrize(
    ("image", "text", "reason", "error"),
    [
        (encode(9, 90), "a cat", "image_too_small", "9 x 90 pixels; the shorter side must have at least 10"),
        (encode(10, 51), "a cat", "aspect", "10 x 51 pixels; the longer side may be at most 5 times the shorter"),
        (GOOD, "  \n", "text_empty", "no text"),
        (GOOD, None, "text_empty", "no text"),
        (GOOD, " ab ", "text_too_short", "2 characters; at least 3"),
        (GOOD, "x" * 9, "text_too_long", "9 characters; at most 8"),
    ],
)
def test_rules_reject_and_keep_the_image(image: bytes, text: str | None, reason: str, error: str, take: Take) -> None:
    rules = {"min_side": 10, "max_aspect": 5, "min_chars": 3, "max_chars": 8}
    row, *good = take([(image, text), (encode(10, 50), "abc"), (GOOD, " x" * 4)], **rules)
    assert (row["status"], row["reason"], row["error"]) == ("rejected", reason, error)
    assert row["image"]["bytes"] == image
    assert [one["status"] for one in good] == ["ok", "ok"]


def test_images_without_a_text_pass_where_the_rules_say_so(take: Take) -> None:
    assert {row["status"] for row in take([(GOOD, None), (GOOD, ""), (GOOD, "x")], min_chars=0)} == {"ok"}


def test_swapped_images_are_found_by_their_stated_hashes(take: Take) -> None:
    sha256, md5 = hashlib.sha256(GOOD).hexdigest(), hashlib.md5(GOOD).hexdigest()
    rows = take(
        [(GOOD, "x")] * 4, {"sha256": [sha256.upper(), "0" * 64, None, None], "md5": [None, None, md5, "0" * 32]}
    )
    assert [row["reason"] for row in rows] == [None, "hash_mismatch", None, "hash_mismatch"]
    assert all(row["image"] is None and row["sha256"] == sha256 for row in rows if row["reason"])


def test_blocked_images_leave_no_byte(tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = encode(50, 50)
    (tmp_path / "block").write_text(f"{'0' * 64}\n{hashlib.sha256(bad).hexdigest().upper()}\n")
    seen = []
    examine = ingest.examine
    monkeypatch.setattr(ingest, "examine", lambda data, cap: seen.append(data) or examine(data, cap))
    row, good = take([(bad, "x"), (GOOD, "y")], block_hashes=str(tmp_path / "block"))
    assert (row["status"], row["reason"], row["image"], row["width"]) == ("rejected", "blocked", None, None)
    assert good["status"] == "ok"
    assert seen == [GOOD]
    (tmp_path / "block").write_text("abc\n")
    with pytest.raises(ConfigError, match="'abc' is neither a sha256"):
        take([(bad, "x")], block_hashes=str(tmp_path / "block"))


def test_settings_hold_no_path_and_change_with_rules_and_block_list(tmp_path: Path) -> None:
    def found(**rules: Any) -> str:
        source = {"type": "parquet", "path": str(tmp_path / "a.parquet")}
        raw = {"sources": [source], "ingest": rules, "select": {"policy": "keep_all"}, "dedup": {"semantic": None}}
        return json.dumps(IngestStage.spec.settings(validate(raw, "test")), sort_keys=True)

    (tmp_path / "block").write_text("")
    assert str(tmp_path) not in found(block_hashes=str(tmp_path / "block"))
    assert found() == found(block_hashes=str(tmp_path / "block"))
    assert len({found(), found(min_side=17), found(rows_per_shard=3)}) == 3
    (tmp_path / "block").write_text("0" * 64)
    assert found() != found(block_hashes=str(tmp_path / "block"))


def test_rows_that_kill_are_not_touched(tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [encode(40 + i, 40) for i in range(4)]
    take([(image, "x") for image in images])
    seen: list[bytes] = []
    examine = ingest.examine
    monkeypatch.setattr(ingest, "examine", lambda data, cap: seen.append(data) or examine(data, cap))
    rows = stored(run(tmp_path / "in.parquet", tmp_path / "again", skip=frozenset([1, 3])))
    assert [row["reason"] for row in rows] == [None, "killed_worker", None, "killed_worker"]
    assert [row["status"] for row in rows] == ["ok", "quarantined", "ok", "quarantined"]
    assert rows[1]["image"] is None
    assert rows[1]["key"] == "in.parquet#1"
    assert seen == [images[0], images[2]]


def test_only_works_on_those_rows_and_writes_nothing(
    tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [encode(40 + i, 40) for i in range(5)]
    take([(image, "x") for image in images])
    seen: list[bytes] = []
    examine = ingest.examine
    monkeypatch.setattr(ingest, "examine", lambda data, cap: seen.append(data) or examine(data, cap))
    run(tmp_path / "in.parquet", tmp_path / "again", only=range(1, 3))
    assert seen == images[1:3]
    assert not (tmp_path / "again").exists()


def test_two_runs_give_equal_bytes_wherever_the_source_lies(tmp_path: Path, take: Take) -> None:
    rows = [(encode(30 + i, 40, k), f"text {i}") for i, k in enumerate(["PNG", "JPEG", "WEBP", "GIF", "BMP"])]
    take([*rows, (b"junk", "x"), (GOOD[:70], "y")], rows_per_shard=3)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "in.parquet").write_bytes((tmp_path / "in.parquet").read_bytes())
    run(tmp_path / "elsewhere" / "in.parquet", tmp_path / "again", rows_per_shard=3)
    files = sorted(path.name for path in (tmp_path / "run" / "pairs").iterdir())
    assert len(files) == 6
    for name in files:
        data = (tmp_path / "run" / "pairs" / name).read_bytes()
        assert data == (tmp_path / "again" / "pairs" / name).read_bytes()
        assert str(tmp_path).encode() not in data


def test_an_image_of_several_texts_is_decoded_once(tmp_path: Path, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    examine = ingest.examine
    monkeypatch.setattr(ingest, "examine", lambda data, cap: seen.append(data) or examine(data, cap))
    rows = take([(GOOD, ["a", "b", "c"]), (encode(50, 50), ["d"]), (GOOD, ["e"])], {"key": ["x", "y", "z"]})
    assert [row["key"] for row in rows] == ["x", "x#1", "x#2", "y", "z"]
    assert len({row["uid"] for row in rows}) == 5
    assert len(seen) == 3


def test_a_folder_stores_file_names_and_human_rows_say_so(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "b.png").write_bytes(GOOD)
    (tmp_path / "in" / "a" / "b.txt").write_text("x")
    (row,) = stored(run(tmp_path / "in", tmp_path / "run", kind="folder", role="human"))
    assert (row["image"]["path"], row["key"], row["role"]) == ("b.png", "a/b.png", "human")


def test_the_shard_has_the_schema_and_counts(take: Take, tmp_path: Path) -> None:
    take([(GOOD, "x"), (b"junk", "x"), (GOOD, "")])
    path = tmp_path / "run" / "pairs" / "00000.parquet"
    assert pq.read_schema(path).equals(arrow(PAIRS), check_metadata=True)
    assert manifest(path)["status"] == {"ok": 1, "quarantined": 1, "rejected": 1}


IMAGE = (
    st.none() | st.binary(max_size=60) | st.sampled_from([GOOD, encode(8, 8), encode(kind="JPEG"), encode(kind="GIF")])
)
CELL = st.none() | st.text(max_size=20) | st.binary(max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(IMAGE, CELL, st.integers(0, 99)), min_size=1, max_size=8), damage=st.integers(0, 10**6))
def test_any_rows_come_out_with_a_verdict(
    rows: list[tuple[bytes | None, str | bytes | None, int]], damage: int, tmp_path: Path
) -> None:
    images = [_damaged(image, damage + i) for i, (image, _, _) in enumerate(rows)]
    cells = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for _, text, _ in rows]
    table = {"image": pa.array(images, pa.binary()), "text": pa.array(cells, pa.binary()).view(pa.string())}
    keys = [f"{key}/{i}" for i, (_, _, key) in enumerate(rows)]
    pq.write_table(pa.table(table | {"key": keys}), tmp_path / "in.parquet", row_group_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stored(run(tmp_path / "in.parquet", tmp_path / "run", rows_per_shard=5))
    assert [row["key"] for row in found] == keys
    assert len({row["uid"] for row in found}) == len(rows)
    for row, image, cell in zip(found, images, cells, strict=True):
        assert row["status"] in ("ok", "rejected", "quarantined")
        assert (row["reason"] is None) == (row["status"] == "ok")
        assert row["image"] is None or row["image"]["bytes"] == image
        assert (row["image"] is None) == (row["status"] == "quarantined")
        assert row["text"] == (None if cell is None else cell.decode("utf-8", "replace"))


def _damaged(image: bytes | None, seed: int) -> bytes | None:
    """Half of them with a flipped byte."""
    if not image or seed % 2:
        return image
    place = seed % len(image)
    return image[:place] + bytes([image[place] ^ 255]) + image[place + 1 :]
