"""Folders and BLIP's lists: texts, numbering, paths that leave, damage."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.config.source import Source
from capfilt.errors import CapfiltError, ConfigError
from capfilt.sources import RawRow, open_source
from capfilt.sources.json_list import JsonList

Rows = Callable[..., list[RawRow]]


def listed(folder: Path, entries: object) -> Path:
    for name in "ab":
        (folder / f"{name}.jpg").write_bytes(name.encode())
    (folder / "list.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return folder / "list.json"


@pytest.mark.parametrize("rows_per_shard", [1, 3, 100])
def test_further_texts_of_an_image_are_numbered_wherever_they_stand(
    rows_per_shard: int, tmp_path: Path, all_rows: Rows
) -> None:
    entries = [("a.jpg", "1"), ("b.jpg", ["2", "3"]), ("a.jpg", "4"), ("a.jpg", []), ("b.jpg", "6"), (None, "7")]
    path = listed(tmp_path, [{"image": image, "caption": caption} for image, caption in entries])
    rows = all_rows("blip_json", path, rows_per_shard)
    keys = ["a.jpg", "b.jpg", "b.jpg#1", "a.jpg#1", "a.jpg#2", "b.jpg#2", "list.json#6"]
    assert [row.key for row in rows] == keys
    assert [row.text for row in rows] == ["1", "2", "3", "4", None, "6", "7"]
    assert [row.image for row in rows] == [b"a", b"b", b"b", b"a", b"a", b"b", None]


def test_paths_that_leave_or_lead_nowhere(tmp_path: Path, all_rows: Rows) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "in").mkdir()
    inside = str(tmp_path / "in" / "a.jpg")
    images = ["../secret.jpg", "x/../../secret.jpg", str(tmp_path / "secret.jpg"), inside, "none.jpg", ".", "a\0.jpg"]
    images += ["a.jpg/b.jpg", "n" * 300 + ".jpg", "\ud800.jpg", 7]
    path = listed(tmp_path / "in", [{"image": image, "caption": "x"} for image in images] + ["no entry", {"url": "u"}])
    rows = all_rows("blip_json", path)
    assert [row.reason for row in rows] == ["image_outside"] * 3 + [None] + ["image_missing"] * 9
    assert rows[3].image == b"a"
    assert all(row.image is None for row in rows if row.reason)
    assert rows[-1].url == "u"


def test_image_root_and_cap(tmp_path: Path, all_rows: Rows) -> None:
    path = listed(tmp_path, [{"image": "big.jpg", "caption": "x"}])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "big.jpg").write_bytes(b"12345")
    (row,) = all_rows("blip_json", path, image_root=str(tmp_path / "root"), max_bytes=5)
    assert row.image == b"12345"
    (row,) = all_rows("blip_json", path, image_root=str(tmp_path / "root"), max_bytes=4)
    assert row.reason == "too_many_bytes"
    with pytest.raises(ConfigError, match="image_root"):
        open_source(Source(type="blip_json", path=str(path), image_root=str(tmp_path / "none")))


@pytest.mark.parametrize("end", ["", ",", ', {"image": "b.j', ', {"image": ]', ', {"image": ' + "[" * 100_000])
def test_a_damaged_list_keeps_what_comes_before(end: str, tmp_path: Path, all_rows: Rows) -> None:
    path = listed(tmp_path, '[{"image": "a.jpg", "caption": "x"}' + end)
    rows = all_rows("blip_json", path, rows_per_shard=1)
    assert [(row.key, row.reason) for row in rows] == [("a.jpg", None), ("list.json#1-", "source_damaged")]
    assert str(tmp_path) not in str(rows[1].error)


@pytest.mark.parametrize("content", ["", "7", '{"images": 3}', '{"images": [], "annotations": [{}]}', "[]"])
def test_other_json_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(CapfiltError, match=r"list\.json"):
        open_source(Source(type="blip_json", path=str(listed(tmp_path, content)))).shard_specs(10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=30) | st.integers() | st.none(), max_size=3)),
    st.booleans(),
    st.sampled_from([1, 2, 7, 2**20]),
)
def test_a_list_streams_as_json_loads_it(entries: list[object], ascii_only: bool, chunk: int) -> None:
    import tempfile

    from capfilt.sources import json_list

    text = json.dumps(entries, ensure_ascii=ascii_only, indent=1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "list.json"
        path.write_bytes(b" \n" + text.encode("utf-8", "surrogatepass"))
        patch.setattr(json_list, "CHUNK", max(chunk, 3))
        found = list(JsonList(path).entries())
        assert [entry for _, entry in found] == entries
        for number, (place, _) in enumerate(found):
            assert [entry for _, entry in JsonList(path).entries(place)] == entries[number:]


def test_a_folder_is_searched_below_and_sorted(tmp_path: Path, all_rows: Rows) -> None:
    for name in ("b.JPG", "a/z.png", "a/.hidden.png", ".git/x.png", "a-c.webp", "note.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a" / "z.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(bytes(2**20 + 1))
    rows = all_rows("folder", tmp_path, rows_per_shard=2)
    assert [(row.key, row.path) for row in rows] == [("a-c.webp", "a-c.webp"), ("a/z.png", "z.png"), ("b.JPG", "b.JPG")]
    assert [row.text for row in rows] == [None, "caf�", None]
    assert [row.reason for row in rows] == [None, None, "text_too_long"]


def test_metadata_lines(tmp_path: Path, all_rows: Rows) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"1")
    lines = ['{"file_name": "b.jpg", "text": ["x", "y"], "similarity": 0.5}', "no json", "[]", '{"file_name": "none"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join([*lines, '{"file_name": "c.jpg", "text": ["p", "q"]}']))
    (tmp_path / "c.txt").write_text("its own")
    for rows_per_shard in (1, 2, 9):
        rows = all_rows("folder", tmp_path, rows_per_shard)
        assert [(row.key, row.text) for row in rows] == [
            ("a.jpg", None),
            ("b.jpg", "x"),
            ("b.jpg#1", "y"),
            ("c.jpg", "its own"),
        ]
        assert rows[1].meta == {"similarity": 0.5}
