"""Six pairs, written in every format that capfilt reads."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from capfilt.config.pipeline import IngestSettings
from capfilt.config.source import Source
from capfilt.sources import RawRow, open_source

TEXTS = ["a red square", "chat — 猫", "two  dogs\n", "", "<b>#4</b>", "the last one"]
KEYS = [f"{i:09d}.png" for i in range(6)]


def picture(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 24, 3), 40 * i, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [picture(i) for i in range(6)]


@pytest.fixture(scope="session")
def six() -> list[tuple[str, bytes, str]]:
    """(key, image, text)."""
    return list(zip(KEYS, IMAGES, TEXTS, strict=True))


@pytest.fixture
def all_rows() -> Callable[..., list[RawRow]]:
    """all_rows(type, path, rows_per_shard=4, max_bytes=..., ...): every row of a source, unit by unit."""

    def read(kind: str, path: Path, rows_per_shard: int = 4, max_bytes: int = 2**20, **source: Any) -> list[RawRow]:
        reader = open_source(Source(type=kind, path=str(path), **source), IngestSettings(max_bytes=max_bytes))
        units = reader.shard_specs(rows_per_shard)
        assert all(0 < unit.stop - unit.start <= rows_per_shard for unit in units)
        return [row for unit in units for row in reader.rows(unit)]

    return read


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """make_tar([(name, data), TarInfo, ...], name="00000.tar", mode="w"): a tar in tmp_path."""

    def make(members: Iterable[Any], name: str = "00000.tar", mode: str = "w") -> Path:
        with tarfile.open(tmp_path / name, mode) as tar:
            for member in members:
                info, data = (
                    (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
                )
                info.size = len(data) if info.isreg() else 0
                tar.addfile(info, io.BytesIO(data))
        return tmp_path / name

    return make


def as_parquet(folder: Path) -> Path:
    image = pa.array([{"bytes": data, "path": key} for key, data in zip(KEYS, IMAGES, strict=True)])
    table = pa.table({"key": KEYS, "image": image, "TEXT": pa.array(TEXTS).dictionary_encode()})
    pq.write_table(table, folder / "pairs.parquet", row_group_size=4)
    return folder / "pairs.parquet"


def as_folder(folder: Path) -> Path:
    for key, data, text in zip(KEYS, IMAGES, TEXTS, strict=True):
        (folder / key).write_bytes(data)
        (folder / key).with_suffix(".txt").write_text(text, newline="")
    return folder


def as_metadata(folder: Path, kind: str) -> Path:
    for key, data in zip(KEYS, IMAGES, strict=True):
        (folder / key).write_bytes(data)
    records = [{"file_name": key, "text": text} for key, text in zip(KEYS, TEXTS, strict=True)]
    with (folder / f"metadata.{kind}").open("w", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(record) + "\n" for record in records)
        else:
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(records)
    return folder


def as_tar(folder: Path, name: str = "00000.tar", keys: Iterable[int] = range(6), **record: Any) -> Path:
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
        for i in keys:
            told = json.dumps({"uid": KEYS[i], "url": f"https://a.example/{i}"} | record)
            for suffix, data in (("png", IMAGES[i]), ("txt", TEXTS[i].encode()), ("json", told.encode())):
                info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / name


def as_img2dataset(folder: Path, tar: bool, kept: Iterable[int] = range(6)) -> Path:
    kept, table = list(kept), {"uid": KEYS, "key": [f"{i:09d}" for i in range(6)], "caption": TEXTS}
    table["status"] = ["success" if i in kept else "failed_to_download" for i in range(6)]
    table["error_message"] = [None if i in kept else "HTTP Error 404: Not Found" for i in range(6)]
    table["sha256"] = ["0" * 64] * 6
    if tar:
        as_tar(folder, keys=kept, status="success", sha256="0" * 64)
    else:
        table["jpg"] = [IMAGES[i] if i in kept else None for i in range(6)]
    pq.write_table(pa.table(table), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    return folder


def as_datasets(folder: Path) -> Path:
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as Feature

    features = Features({"__key__": Value("string"), "image": Feature(), "caption": Value("string")})
    images = [{"bytes": data, "path": key} for key, data in zip(KEYS, IMAGES, strict=True)]
    data = Dataset.from_dict({"__key__": KEYS, "image": images, "caption": TEXTS}, features=features)
    DatasetDict({"train": data, "test": data}).save_to_disk(folder / "saved", num_shards={"train": 2, "test": 1})
    return folder / "saved"


def as_blip(folder: Path) -> Path:
    as_folder(folder)
    entries = [{"image": key, "caption": text} for key, text in zip(KEYS, TEXTS, strict=True)]
    (folder / "list.json").write_text(json.dumps(entries, indent=1))
    return folder / "list.json"


def as_coco(folder: Path) -> Path:
    as_folder(folder)
    images = [{"id": i, "file_name": key} for i, key in enumerate(KEYS)]
    notes = [{"image_id": i, "id": 9 - i, "caption": TEXTS[i]} for i in reversed(range(6))]
    (folder / "coco.json").write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    return folder / "coco.json"


def as_karpathy(folder: Path) -> Path:
    (folder / "val").mkdir()
    as_folder(folder / "val")
    images = [
        {"filepath": "val", "filename": k, "sentences": [{"raw": t}], "split": "test"}
        for k, t in zip(KEYS, TEXTS, strict=True)
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    return folder / "dataset_coco.json"


WRITERS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "parquet": ("parquet", as_parquet),
    "folder": ("folder", as_folder),
    "jsonl": ("folder", lambda folder: as_metadata(folder, "jsonl")),
    "csv": ("folder", lambda folder: as_metadata(folder, "csv")),
    "tar": ("webdataset", as_tar),
    "gzip": ("webdataset", lambda folder: as_tar(folder, "00000.tar.gz")),
    "img2dataset tar": ("img2dataset", lambda folder: as_img2dataset(folder, tar=True)),
    "img2dataset parquet": ("img2dataset", lambda folder: as_img2dataset(folder, tar=False)),
    "datasets": ("datasets", as_datasets),
    "blip": ("blip_json", as_blip),
    "coco": ("blip_json", as_coco),
    "karpathy": ("blip_json", as_karpathy),
}


@pytest.fixture(params=list(WRITERS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, Path]:
    """(format, type, path) of the six pairs in one format after another."""
    kind, write = WRITERS[request.param]
    return request.param, kind, write(tmp_path)


@pytest.fixture
def img2dataset(tmp_path: Path) -> Callable[..., Path]:
    """img2dataset(tar, kept): its folder, with failures but for the rows `kept`."""
    return lambda tar, kept: as_img2dataset(tmp_path, tar, kept)
