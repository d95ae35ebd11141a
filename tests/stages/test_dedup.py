"""dedup: near's groups and embeddings together, the better-judged row kept, evaluation images found."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from capfilt.errors import DataError
from capfilt.media.images import decode_image, phash
from capfilt.models.blip.adapter import Blip
from capfilt.stages.base import Task
from capfilt.stages.dedup import DedupStage
from capfilt.stages.near import NearStage
from capfilt.store.layout import RunLayout
from capfilt.store.schema import DEDUP, arrow, score_columns
from capfilt.store.shards import ShardWriter, table

Record = dict[str, Any]
Maker = Callable[..., Any]
NUMBERS = count()
A, A2, B, C = [1.0, 0.0, 0.0, 0.0], [0.99, 0.14, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.6, 0.8]
SCORED = st.fixed_dictionaries({
    "pixels_sha256": st.sampled_from(["p", "q", *map(str, range(9))]),
    "role": st.sampled_from(["web", "web", "human"]),
    "status": st.sampled_from(["ok", "ok", "ok", "rejected"]),
    "vector": st.sampled_from([None, A, A2, B, C, [0.0] * 4]),
    "itm": st.sampled_from([None, 0.1, 0.9]),
})  # fmt: skip


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of tiny shards are written: none waits for the disk."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def dedup(make_layout: Maker, pairs_row: Maker) -> Callable[..., tuple[RunLayout, list[Record]]]:
    """dedup(shards of changes of rows, dedup={...}): near and dedup run; the layout and dedup's rows in input order.

    `vector` and `itm` of a change go to score's sidecar; `near=False` and `score=None` leave these stages out.
    """

    def run(shards: list[list[Record]], near: bool = True, **parts: Any) -> tuple[RunLayout, list[Record]]:
        kept = [
            [{k: v for k, v in row.items() if k not in ("vector", "itm", "n")} for row in shard] for shard in shards
        ]
        pairs = [
            [pairs_row(row["n"], b"x", **change) for row, change in zip(*both, strict=True)]
            for both in zip(shards, kept, strict=True)
        ]
        layout = make_layout(pairs, near={} if near else None, name=f"run{next(NUMBERS)}", **parts)
        if near:
            layout = replace(layout, folders=layout.folders | {"near": "near-1"})
            NearStage(layout).process(Task(0))
        if layout.has("score"):
            write_scores(layout, shards, pairs)
        stage = DedupStage(layout)
        stage.setup()
        stage.process(Task(0))
        return layout, [row for i in range(len(shards)) for row in table(layout.shard("dedup", i)).to_pylist()]

    return run


def write_scores(layout: RunLayout, shards: list[list[Record]], pairs: list[list[Record]]) -> None:
    dim = next((len(row["vector"]) for shard in shards for row in shard if row.get("vector") is not None), 4)
    for index, shard in enumerate(shards):
        with ShardWriter(layout.shard("score", index), arrow(score_columns(dim))) as writer:
            for row, pair in zip(shard, pairs[index], strict=True):
                scores = {"web_itm": row.get("itm"), "image_embedding": row.get("vector")}
                writer.write([{"uid": pair["uid"], "status": "ok", **scores}])


def mark_of(row: Record) -> tuple[str | None, str | None, float | None]:
    return row["duplicate_of"], row["duplicate_kind"], row["similarity"]


def uid(n: int) -> str:
    return f"{n:016x}"


def by_uid(rows: list[Record]) -> Mapping[str, Record]:
    return {row["uid"]: row for row in rows}


def test_alike_embeddings_and_the_better_judged_row_stays(dedup: Maker) -> None:
    rows = [{"n": 1, "vector": A, "itm": 0.2}, {"n": 2, "vector": A2, "itm": 0.7}, {"n": 3, "vector": B, "itm": 0.9}]
    _, found = dedup([rows])
    assert [row["duplicate_of"] for row in found] == [uid(2), None, None]
    assert found[0]["duplicate_kind"] == "semantic"
    assert found[0]["similarity"] == pytest.approx(0.99, abs=1e-3)
    assert dedup([rows], dedup={"semantic": {"min_similarity": 0.995}})[1][0]["duplicate_of"] is None
    assert dedup([rows], dedup={"semantic": None})[1][0]["duplicate_of"] is None


def test_near_groups_are_joined(dedup: Maker) -> None:
    """near kept 1 for 2 (unscored, as the models skip it); 3 is like 1 and better judged: all go to 3."""
    first = {"n": 1, "pixels_sha256": "p", "vector": A, "itm": 0.3}
    second = {"n": 2, "pixels_sha256": "p"}
    third = {"n": 3, "vector": A2, "itm": 0.6}
    _, found = dedup([[first], [second, third]])
    assert [row["duplicate_of"] for row in found] == [uid(3), uid(3), None]
    assert [row["duplicate_kind"] for row in found] == ["semantic", "exact", None]


def test_human_rows_are_kept_and_keep_the_others_out(dedup: Maker) -> None:
    rows = [
        {"n": 1, "vector": A, "itm": 0.9},
        {"n": 2, "vector": A, "role": "human"},
        {"n": 3, "vector": A, "role": "human"},
    ]
    _, found = dedup([rows])
    assert [mark_of(row) for row in found] == [(uid(2), "semantic", 1.0), (None, None, None), (None, None, None)]


def test_the_worse_judged_of_near_goes_where_models_skip_nothing(dedup: Maker) -> None:
    rows = [{"n": n, "pixels_sha256": "p", "vector": A, "itm": itm} for n, itm in ((1, 0.1), (2, 0.8), (3, None))]
    _, found = dedup([rows], dedup={"skip_models": False})
    assert [mark_of(row) for row in found] == [(uid(2), "exact", 1.0), (None, None, None), (uid(2), "exact", 1.0)]


@pytest.mark.parametrize("near", [True, False])
def test_without_scores(dedup: Maker, near: bool) -> None:
    rows = [{"n": 1, "pixels_sha256": "p"}, {"n": 2, "pixels_sha256": "p"}, {"n": 1}]
    parts = {"score": None, "select": {"policy": "keep_all"}, "dedup": {"semantic": None}}
    _, found = dedup([rows], near=near, **parts)
    assert found[2]["duplicate_kind"] == "key"
    assert found[2]["duplicate_of"] == uid(1)
    assert found[1]["duplicate_of"] == (uid(1) if near else None)


@given(st.lists(SCORED, min_size=2, max_size=9), st.randoms(), st.integers(0, 9))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_and_shards_change_no_mark_and_marks_lead_to_kept_rows(
    dedup: Maker, drawn: list[Record], random: Any, cut: int
) -> None:
    rows = [{**row, "n": n} for n, row in enumerate(drawn)]
    mixed = list(rows)
    random.shuffle(mixed)
    straight, other = by_uid(dedup([rows])[1]), by_uid(dedup([mixed[:cut], mixed[cut:]])[1])
    assert straight == other
    for row in rows:
        mark = other[uid(row["n"])]
        if row["role"] == "human" or row["status"] != "ok":
            assert mark_of(mark) == (None, None, None)
        elif mark["duplicate_of"] is not None:
            assert other[mark["duplicate_of"]]["duplicate_of"] is None
            assert drawn[int(mark["duplicate_of"], 16)]["status"] == "ok"
    close = [row for row in rows if row["status"] == "ok" and row["vector"] in (A, A2)]
    assert len({other[uid(r["n"])]["duplicate_of"] or uid(r["n"]) for r in close if r["role"] == "web"} -
               {uid(r["n"]) for r in close if r["role"] == "human"}) <= 1  # fmt: skip


def test_the_same_bytes_again_and_their_layout(dedup: Maker) -> None:
    shards = [[{"n": 1, "vector": A}, {"n": 2, "vector": A2}], [], [{"n": 3}]]
    first, second = dedup(shards)[0], dedup(shards)[0]
    for shard in range(3):
        path = first.shard("dedup", shard)
        assert path.read_bytes() == second.shard("dedup", shard).read_bytes()
        assert table(path).schema.equals(arrow(DEDUP))
        assert table(path).num_rows == len(shards[shard])


def test_a_sidecar_of_other_rows_is_refused(dedup: Maker) -> None:
    layout, _ = dedup([[{"n": 1, "vector": A}]])
    write_scores(layout, [[{"n": 2, "vector": A}]], [[{"uid": uid(2)}]])
    with pytest.raises(DataError, match="uids are not those"):
        DedupStage(layout).process(Task(0))


@pytest.fixture
def eval_file(tmp_path: Path, picture: Callable[[int], bytes]) -> Path:
    """Pictures 5, 6 and 7 under the keys e5, e6 and e7."""
    images = pa.array([{"bytes": picture(n), "path": None} for n in (5, 6, 7)])
    pq.write_table(pa.table({"key": ["e5", "e6", "e7"], "image": images}), tmp_path / "coco.parquet")
    return tmp_path / "coco.parquet"


def half_quality(data: bytes) -> Image.Image:
    buffer = BytesIO()
    decode_image(data).save(buffer, "JPEG", quality=60)
    return decode_image(buffer.getvalue())


def test_evaluation_images_are_found_by_hash(dedup: Maker, eval_file: Path, picture: Callable[[int], bytes]) -> None:
    rows = [
        {"n": 1, "phash": phash(half_quality(picture(6)))},
        {"n": 2, "phash": phash(decode_image(picture(8)))},
        {"n": 3, "phash": phash(decode_image(picture(7))), "role": "human"},
        {"n": 4, "phash": phash(decode_image(picture(7))), "status": "rejected"},
    ]
    decontaminate = [{"path": str(eval_file), "min_similarity": None}]
    _, found = dedup([rows[:1], rows[1:]], dedup={"decontaminate": decontaminate})
    assert [row["contaminates"] for row in found] == ["coco:e6", None, "coco:e7", None]
    assert [row["duplicate_of"] for row in found] == [None] * 4


def test_evaluation_images_are_found_by_embedding(
    dedup: Maker, eval_file: Path, picture: Callable[[int], bytes]
) -> None:
    blip = Blip.load("tiny/filter")
    pictures = [decode_image(picture(6)), decode_image(picture(8))]
    vectors = blip.embed(blip.encode_images(blip.preprocess(pictures))).half().numpy()
    rows = [{"n": 1, "vector": vectors[0]}, {"n": 2, "vector": vectors[1]}, {"n": 3}]
    decontaminate = [{"path": str(eval_file), "name": "karpathy", "max_distance": None, "min_similarity": 0.999}]
    parts = {"semantic": None, "decontaminate": decontaminate}
    assert [row["contaminates"] for row in dedup([rows], dedup=parts)[1]] == ["karpathy:e6", None, None]


def test_settings_follow_the_content_of_an_evaluation_set(make_layout: Maker, eval_file: Path) -> None:
    layout: RunLayout = make_layout([[]], dedup={"decontaminate": [{"path": str(eval_file)}]})
    first = DedupStage.spec.settings(layout.pipeline)
    assert str(eval_file.parent) not in str(first)
    pq.write_table(pa.table({"image": pa.array([b"x"])}), eval_file)
    assert DedupStage.spec.settings(layout.pipeline) != first
    eval_file.unlink()
    with pytest.raises(DataError, match=r"coco\.parquet"):
        DedupStage.spec.settings(layout.pipeline)
