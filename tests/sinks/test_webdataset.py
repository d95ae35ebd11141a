import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset

from capfilt.sinks.base import Picture
from capfilt.sinks.webdataset import write_webdataset

Pictures = Callable[..., Picture]


def members(path: Path) -> dict[str, bytes]:
    """Name -> content, in the tar's order."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def test_a_sample_a_pair_with_its_history(tmp_path: Path, kept_picture: Pictures) -> None:
    picture = kept_picture(1, {"web": "eine Kätzchen", "synthetic": "a black cat"})
    counts = write_webdataset([picture], tmp_path, ["PNG"], 2, 10)
    path = tmp_path / "webdataset" / "00000.tar"
    assert counts == {"files": 1, "rows": 2, "bytes": path.stat().st_size}
    found = members(path)
    uid = f"{1:016x}"
    assert list(found) == [f"{key}.{suffix}" for key in (uid, f"{uid}_1") for suffix in ("png", "txt", "json")]
    assert found[f"{uid}.png"] == found[f"{uid}_1.png"] == picture.data
    assert found[f"{uid}.txt"] == "eine Kätzchen".encode()
    assert found[f"{uid}.json"].decode() == (
        '{"format": "PNG", "height": 8, "itc": 0.25, "itm": 0.5, "key": "1", "origin": "web", "round": 0, '
        f'"sha256": "{1:064x}", "uid": "{uid}", "url": "https://a.example/1", "width": 8}}'
    )
    synthetic = json.loads(found[f"{uid}_1.json"])
    assert (synthetic["origin"], synthetic["sample"], synthetic["digest"]) == ("synthetic", 0, "c" * 16)


def test_members_are_nobodys_of_no_time(tmp_path: Path, kept_picture: Pictures) -> None:
    write_webdataset([kept_picture(1)], tmp_path, ["PNG"], 1, 10)
    with tarfile.open(tmp_path / "webdataset" / "00000.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isreg()) for m in tar}
    assert facts == {(0, 0, 0, "", "", 0o644, True)}


@pytest.mark.parametrize(("number", "sizes"), [(0, [0]), (4, [4]), (5, [4, 1])])
def test_samples_of_each_tar(tmp_path: Path, kept_picture: Pictures, number: int, sizes: list[int]) -> None:
    write_webdataset(map(kept_picture, range(number)), tmp_path, ["PNG"], number, 4)
    tars = sorted((tmp_path / "webdataset").iterdir())
    assert [path.name for path in tars] == [f"{i:05d}.tar" for i in range(len(sizes))]
    assert [len(members(path)) // 3 for path in tars] == sizes


def test_datasets_opens_mixed_formats_and_origins(tmp_path: Path, kept_picture: Pictures) -> None:
    """Nulls in the first five samples' JSON, or another suffix after them, would stop it or read as None."""
    pictures = [kept_picture(i, url=None) for i in range(6)]
    pictures += [kept_picture(6, {"synthetic": "made"}, format="JPEG"), kept_picture(7, format="GIF")]
    write_webdataset(pictures, tmp_path, ["GIF", "JPEG", "PNG"], 8, 100)
    files = {"train": str(tmp_path / "webdataset" / "*.tar")}
    loaded = load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["jpg"].format for row in loaded] == ["PNG"] * 6 + ["JPEG", "GIF"]
    assert (loaded[6]["txt"], loaded[6]["json"]["origin"], loaded[0]["json"]["itm"]) == ("made", "synthetic", 0.5)
