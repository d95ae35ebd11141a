"""Scores: those of the model, beside the right texts, null where there is nothing to judge. No score is asserted."""

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from capfilt.errors import ConfigError
from capfilt.inference import rows
from capfilt.media.text import pre_caption
from capfilt.models.blip.adapter import Blip
from capfilt.stages.base import Task
from capfilt.stages.score import ScoreStage
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter
from capfilt.store.schema import arrow, score_columns
from capfilt.store.shards import table

Record = dict[str, Any]
Make = Callable[..., Any]
SCORES = ("web_itc", "web_itm", "caption_itc", "caption_itm", "image_embedding")


def run(layout: RunLayout, shard: int = 0, **options: Any) -> list[Record]:
    stage = ScoreStage(layout)
    stage.setup()
    stage.process(Task(shard, RowFilter(**options)))
    path = layout.shard("score", shard)
    return table(path).to_pylist() if path.exists() else []


def captions(row: Record, *texts: str) -> Record:
    made = [{"text": text, "logprob": -1.0, "sample": i} for i, text in enumerate(texts)]
    return {"uid": row["uid"], "captions": made or None, "status": "ok" if made else "skipped"}


@pytest.fixture
def mixed(pairs_row: Make) -> list[Record]:
    """One row of each kind; 4 repeats 0, and the bytes of 5 are no image."""
    return [
        pairs_row(0), pairs_row(1, role="human"), pairs_row(2, status="rejected"), pairs_row(3, status="quarantined"),
        pairs_row(4), pairs_row(5, data=b"no image"), pairs_row(6, text=None), pairs_row(7, text="... !!"),
    ]  # fmt: skip


@pytest.fixture
def layout(make_layout: Make, mixed: list[Record], write_sidecar: Make) -> RunLayout:
    """`mixed` with two captions a web row; the second one of row 7 has nothing left once it is cleaned."""
    made: RunLayout = make_layout([mixed], near={mixed[4]["uid"]: mixed[0]["uid"]})
    texts = {0: ("a cat", "two dogs on a sofa"), 6: ("a car", "a red car"), 7: ("a tree", ". . .")}
    write_sidecar(made, "caption", 0, [captions(row, *texts.get(i, ())) for i, row in enumerate(mixed)])
    return made


def test_which_rows(layout: RunLayout, mixed: list[Record]) -> None:
    found = run(layout)
    assert table(layout.shard("score", 0)).schema.equals(arrow(score_columns(256)))
    assert [row["uid"] for row in found] == [row["uid"] for row in mixed]
    states = ["ok", "ok", "skipped", "skipped", "skipped", "failed", "ok", "ok"]
    assert [row["status"] for row in found] == states
    assert [row["error"] is not None for row in found] == [state == "failed" for state in states]
    for row in found:
        if row["status"] != "ok":
            assert all(row[name] is None for name in SCORES)
        else:
            assert np.linalg.norm(np.array(row["image_embedding"], dtype=np.float64)) == pytest.approx(1, abs=2e-3)


def test_null_where_there_is_no_text(layout: RunLayout) -> None:
    found = run(layout)
    for name in ("itc", "itm"):
        assert [row[f"web_{name}"] is None for row in found] == [False, False, True, True, True, True, True, True]
        lists = [row[f"caption_{name}"] for row in found]
        assert [several is None for several in lists] == [False, True, True, True, True, True, False, False]
        assert [[score is None for score in lists[i]] for i in (0, 6, 7)] == [[False] * 2, [False] * 2, [False, True]]


@pytest.mark.usefixtures("one_thread")
def test_as_the_model_called_row_by_row(layout: RunLayout, mixed: list[Record]) -> None:
    found, blip = run(layout), Blip.load("tiny/filter")
    given = table(layout.shard("caption", 0)).to_pylist()
    for i in (0, 1, 6, 7):
        pixels = blip.preprocess([rows.decode_image(mixed[i]["image"]["bytes"])])
        texts = [mixed[i]["text"], *(caption["text"] for caption in given[i]["captions"] or [])]
        row = found[i]
        stored = zip(
            [row["web_itc"], *(row["caption_itc"] or [])], [row["web_itm"], *(row["caption_itm"] or [])], strict=True
        )
        for text, (itc, itm) in zip(texts, stored, strict=True):
            if clean := pre_caption(text or ""):
                want = blip.score(pixels, [[clean]])[0][0]
                assert itc == pytest.approx(want.itc, abs=1e-5)
                assert itm == pytest.approx(want.itm, abs=1e-5)
                assert -1 <= itc <= 1
                assert 0 <= itm <= 1
        np.testing.assert_allclose(
            np.array(row["image_embedding"]), blip.embed(blip.encode_images(pixels))[0].numpy(), atol=1e-3
        )


def test_one_vision_pass_an_image(layout: RunLayout) -> None:
    stage = ScoreStage(layout)
    stage.setup()
    seen = list[int]()
    stage.judge.med.vision.register_forward_hook(lambda module, given, states: seen.append(len(states)))
    stage.process(Task(0))
    assert seen == [3, 1]  # four asked, of which the bytes of one are no image; the fifth


def test_without_captions_and_with_marked_rows(make_layout: Make, mixed: list[Record]) -> None:
    near = {mixed[4]["uid"]: mixed[0]["uid"]}
    found = run(make_layout([mixed], near=near, caption=None, dedup={"skip_models": False}))
    assert [row["status"] for row in found].count("ok") == 5
    assert all(row["caption_itc"] is None and row["caption_itm"] is None for row in found)
    assert found[4]["web_itc"] is not None


def test_bytes_are_the_same(layout: RunLayout) -> None:
    """A second time, with other threads, and from pairs and captions in other row groups."""
    run(layout)
    path = layout.shard("score", 0)
    first = path.read_bytes()
    for stage, size in (("ingest", 3), ("caption", 2)):
        pq.write_table(pq.read_table(layout.shard(stage, 0)), layout.shard(stage, 0), row_group_size=size)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    path.unlink()
    run(layout)
    torch.set_num_threads(before)
    assert path.read_bytes() == first


def test_batch_size_is_rounding(make_layout: Make, pairs_row: Make) -> None:
    pairs = [pairs_row(i) for i in range(12)]
    one, two = (run(make_layout([pairs], name=str(size), caption=None, score={"batch_size": size})) for size in (1, 7))
    for name in ("web_itc", "web_itm"):
        np.testing.assert_allclose([row[name] for row in one], [row[name] for row in two], atol=1e-5)


def test_skip(layout: RunLayout, mixed: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(layout)
    decoded = list[bytes]()
    real = rows.decode_image
    monkeypatch.setattr(rows, "decode_image", lambda data, cap: (decoded.append(data), real(data, cap))[1])
    found = run(layout, quarantined=frozenset({1}))
    assert (found[1]["status"], found[1]["error"]) == ("failed", "killed its worker")
    assert all(found[1][name] is None for name in SCORES)
    assert mixed[1]["image"]["bytes"] not in decoded
    assert found[7] == whole[7]  # in another batch, whose bounds have not moved
    assert found[0]["web_itm"] == pytest.approx(whole[0]["web_itm"], abs=1e-5)


def test_only(layout: RunLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = list[int]()
    real = Blip.match
    monkeypatch.setattr(
        Blip, "match", lambda self, states, texts: (judged.append(len(states)), real(self, states, texts))[1]
    )
    run(layout, only=range(1, 7))
    assert judged == [2]  # rows 1 and 6
    assert not layout.folder("score").exists()


def test_others_can_read_it(layout: RunLayout, tmp_path: Any) -> None:
    """Half floats are young in Parquet; DuckDB shows them as FLOAT[]."""
    want = [row["image_embedding"] for row in run(layout)]
    path = str(layout.shard("score", 0))
    assert duckdb.sql(f"select image_embedding, typeof(image_embedding) from '{path}'").fetchall() == [
        (row, "FLOAT[]") for row in want
    ]
    frame = pd.read_parquet(path)
    assert frame["image_embedding"][0].dtype == np.float16
    assert [None if row is None else row.tolist() for row in frame["image_embedding"]] == want
    assert Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))["image_embedding"][:] == want


def test_the_model_must_judge(make_layout: Make, pairs_row: Make) -> None:
    with pytest.raises(ConfigError, match="not judge"):
        ScoreStage(make_layout([[pairs_row(0)]], score={"model": "tiny/captioner"})).setup()


def test_settings(make_layout: Make) -> None:
    base = ScoreStage.spec.settings(make_layout([]).pipeline)
    assert ScoreStage.spec.settings(make_layout([], score={"batch_size": 5}).pipeline) != base
    assert ScoreStage.spec.settings(make_layout([], dedup={"skip_models": False}).pipeline) != base
    assert ScoreStage.spec.settings(make_layout([], select={"itm_threshold": 0.9}).pipeline) == base
    bare = {"select": {"policy": "keep_all"}, "dedup": {"semantic": None}}
    assert ScoreStage.spec.settings(make_layout([], score=None, **bare).pipeline) is None
