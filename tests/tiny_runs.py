"""A small run folder, its pairs written directly: stages are tested without the ones before them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from capfilt.config.load import validate
from capfilt.store.layout import RunLayout, ShardSpec
from tests.sidecar_rows import write_shard

Record = dict[str, Any]


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    """Fail a test that leaves the process with another number of torch threads."""
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before, f"the test left torch with {after} threads; there were {before}"


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Give torch two threads for the time of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def picture() -> Callable[[int], bytes]:
    """picture(i): a PNG of 48 x 36 pixels, always the same, another for each i."""

    def make(i: int) -> bytes:
        rng = np.random.default_rng(i)
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((48, 36))
        left, top = rng.integers(0, 20, 2).tolist()
        ImageDraw.Draw(image).ellipse((left, top, left + 18, top + 14), fill=tuple(rng.integers(0, 256, 3).tolist()))
        buffer = BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def pairs_row(picture: Callable[[int], bytes]) -> Callable[..., Record]:
    """pairs_row(i, role="human", ...): a row as ingest writes it, web and ok but for the changes.

    `status` other than ok gets a reason; quarantined takes the image away. `data` are the image's bytes.
    """

    def make(i: int, data: bytes | None = None, **changes: Any) -> Record:
        row: Record = {
            "uid": f"{i:016x}",
            "source": "web",
            "role": "web",
            "key": str(i),
            "url": f"https://a.example/{i}",
        }
        row |= {"text": f"a round thing number {i}", "width": 48, "height": 36, "format": "PNG", "status": "ok"}
        row |= {"sha256": f"{i:064x}", "pixels_sha256": f"{i:064x}", "phash": i * 0x9E3779B97F4A7C15 % 2**64}
        row |= {"image": {"bytes": data or picture(i), "path": f"{i}.png"}}
        if changes.get("status", "ok") != "ok":
            row |= {"reason": "image_unreadable", "error": "cannot be decoded"}
        if changes.get("status") == "quarantined":
            row["image"] = None
        return row | changes

    return make


@pytest.fixture
def write_sidecar() -> Callable[[RunLayout, str, int, Iterable[Mapping[str, Any]]], None]:
    """write_sidecar(layout, stage, shard, rows): one shard of a stage."""
    return write_shard


@pytest.fixture
def make_layout(tmp_path: Path, write_sidecar: Callable[..., None]) -> Callable[..., RunLayout]:
    """make_layout(shards, near={uid: uid of what it repeats}, name="run", caption={...}, score=None, ...): a run.

    `shards`: lists of pairs rows, written; near's sidecars too, unless `near` is None (then there is no such stage).
    The rest are the pipeline's parts: tiny models in batches of 4, merged with what is given; None leaves a part out.
    """

    def make(
        shards: list[list[Record]], near: Mapping[str, str] | None = None, name: str = "run", **parts: Any
    ) -> RunLayout:
        raw: Record = {"sources": [{"type": "parquet", "path": "pairs.parquet", "name": "web"}]}
        for part, model in (("caption", "tiny/captioner"), ("score", "tiny/filter")):
            changes = parts.pop(part, {})
            raw[part] = None if changes is None else {"model": model, "device": "cpu", "batch_size": 4} | changes
        left_out = {part for part in ("caption", "score") if raw[part] is None} | ({"near"} if near is None else set())
        stages = ("near", "caption", "score", "dedup", "select")
        folders = {"ingest": "pairs"} | {stage: f"{stage}-0" for stage in stages if stage not in left_out}
        units = tuple(ShardSpec("web", "", 0, len(rows)) for rows in shards)
        layout = RunLayout(validate(raw | parts, "test.yaml"), tmp_path / name, units, folders)
        for shard, rows in enumerate(shards):
            write_sidecar(layout, "ingest", shard, rows)
            if near is not None:
                write_sidecar(layout, "near", shard, [_mark(row["uid"], near.get(row["uid"])) for row in rows])
        return layout

    return make


def _mark(uid: str, kept: str | None) -> Record:
    columns = {"duplicate_of": kept, "duplicate_kind": "exact", "similarity": 1.0}
    return {"uid": uid} | (columns if kept is not None else {})
