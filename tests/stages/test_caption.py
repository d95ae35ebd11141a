"""Captions: of which rows, how many, and the same ones however they are computed. No text of a model is asserted."""

from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from capfilt.errors import ConfigError
from capfilt.inference import rows
from capfilt.models.blip.adapter import Blip
from capfilt.models.fake import FakeSystem
from capfilt.stages.base import Task
from capfilt.stages.caption import CaptionStage
from capfilt.store.layout import RunLayout
from capfilt.store.row_filter import RowFilter
from capfilt.store.schema import CAPTIONS, arrow
from capfilt.store.shards import manifest, table

Record = dict[str, Any]
Make = Callable[..., Any]
FAKE = {"model": "fake"}


def run(layout: RunLayout, shard: int = 0, **options: Any) -> list[Record]:
    stage = CaptionStage(layout)
    stage.setup()
    stage.process(Task(shard, RowFilter(**options)))
    path = layout.shard("caption", shard)
    return table(path).to_pylist() if path.exists() else []


def texts(records: list[Record]) -> list[list[str] | None]:
    return [row["captions"] and [caption["text"] for caption in row["captions"]] for row in records]


@pytest.fixture
def mixed(pairs_row: Make) -> list[Record]:
    """One row of each kind; 4 repeats 0, and the bytes of 5 are no image."""
    return [
        pairs_row(0), pairs_row(1, role="human"), pairs_row(2, status="rejected"), pairs_row(3, status="quarantined"),
        pairs_row(4), pairs_row(5, data=b"no image"), pairs_row(6, text=None), pairs_row(7),
    ]  # fmt: skip


def test_which_rows(make_layout: Make, mixed: list[Record]) -> None:
    layout = make_layout([mixed], near={mixed[4]["uid"]: mixed[0]["uid"]}, caption={**FAKE, "samples": 3})
    found = run(layout)
    assert table(layout.shard("caption", 0)).schema.equals(arrow(CAPTIONS))
    assert [row["uid"] for row in found] == [row["uid"] for row in mixed]
    states = ["ok", "skipped", "skipped", "skipped", "skipped", "failed", "ok", "ok"]
    assert [row["status"] for row in found] == states
    for row in found:
        assert (row["captions"] is not None) == (row["status"] == "ok")
        assert (row["error"] is not None) == (row["status"] == "failed")
        assert [caption["sample"] for caption in row["captions"] or [{"sample": i} for i in range(3)]] == [0, 1, 2]
        assert all(caption["logprob"] < 0 for caption in row["captions"] or [])
    assert "cannot be decoded" in found[5]["error"]
    assert manifest(layout.shard("caption", 0))["status"] == {"failed": 1, "ok": 3, "skipped": 4}


def test_marked_rows_on_request(make_layout: Make, mixed: list[Record]) -> None:
    near = {mixed[4]["uid"]: mixed[0]["uid"]}
    assert run(make_layout([mixed], near=near, caption=FAKE, dedup={"skip_models": False}))[4]["status"] == "ok"
    assert run(make_layout([mixed], name="without", caption=FAKE))[4]["status"] == "ok"


@pytest.mark.usefixtures("one_thread")
def test_as_the_model_called_row_by_row(make_layout: Make, pairs_row: Make) -> None:
    pairs = [pairs_row(i) for i in range(6)]
    layout = make_layout([pairs], caption={"samples": 2, "seed": 5})
    found = run(layout)
    blip = Blip.load("tiny/captioner")
    blip.decoding = blip.decoding.model_copy(update={"seed": 5})
    for row, made in zip(pairs, found, strict=True):
        pixels = blip.preprocess([rows.decode_image(row["image"]["bytes"])])
        for sample in range(2):
            want = blip.caption(pixels, [row["uid"]], sample)[0]
            assert made["captions"][sample]["text"] == want.text
            assert made["captions"][sample]["logprob"] == pytest.approx(want.logprob, abs=1e-5)


def test_seed_and_sample_count(make_layout: Make, pairs_row: Make) -> None:
    """A random model would do for this: other noise, other captions."""
    pairs = [pairs_row(i) for i in range(4)]
    hot = {"decoding": {"top_p": 1.0, "temperature": 3.0}, "samples": 2}
    first = texts(run(make_layout([pairs], caption=hot)))
    assert all(row is not None and row[0] != row[1] for row in first)
    assert texts(run(make_layout([pairs], name="other", caption=hot | {"seed": 1}))) != first


def test_batch_size_does_not_matter(make_layout: Make, pairs_row: Make) -> None:
    pairs = [pairs_row(i) for i in range(20)]
    runs = [run(make_layout([pairs], name=str(size), caption={"batch_size": size})) for size in (3, 16)]
    assert texts(runs[0]) == texts(runs[1])
    assert None not in texts(runs[0])


def test_bytes_are_the_same(make_layout: Make, mixed: list[Record]) -> None:
    """A second time, with other threads, and from pairs in other row groups."""
    jobs = [make_layout([mixed], near={}, name=name) for name in ("one", "two")]
    run(jobs[0])
    path = jobs[1].shard("ingest", 0)
    pq.write_table(pq.read_table(path), path, row_group_size=3)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    run(jobs[1])
    torch.set_num_threads(before)
    first, second = (layout.shard("caption", 0).read_bytes() for layout in jobs)
    assert first == second
    run(jobs[0])
    assert jobs[0].shard("caption", 0).read_bytes() == first


def test_skip(make_layout: Make, mixed: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is not touched, the others are as they were, their batches too."""
    layout = make_layout([mixed], caption=FAKE)
    whole = run(layout)
    decoded = list[bytes]()
    real = rows.decode_image
    monkeypatch.setattr(rows, "decode_image", lambda data, cap: (decoded.append(data), real(data, cap))[1])
    found = run(layout, quarantined=frozenset({0}))
    assert found[0] == {"uid": mixed[0]["uid"], "captions": None, "status": "failed", "error": "killed its worker"}
    assert mixed[0]["image"]["bytes"] not in decoded
    assert texts(found)[1:] == texts(whole)[1:]
    assert [row["status"] for row in found[1:]] == [row["status"] for row in whole[1:]]


def test_only(make_layout: Make, mixed: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_layout([mixed], caption={**FAKE, "batch_size": 1})
    captioned = list[str]()
    real = FakeSystem.captions
    spy = lambda self, states, uids, samples: (captioned.extend(uids), real(self, states, uids, samples))[1]  # noqa: E731
    monkeypatch.setattr(FakeSystem, "captions", spy)
    run(layout, only=range(4, 7))
    assert captioned == [mixed[4]["uid"], mixed[6]["uid"]]
    assert not layout.folder("caption").exists()


def test_several_shards(make_layout: Make, pairs_row: Make) -> None:
    """A row's caption does not depend on its shard."""
    pairs = [pairs_row(i) for i in range(5)]
    one = make_layout([pairs], name="one", caption=FAKE)
    two = make_layout([pairs[:2], pairs[2:]], name="two", caption=FAKE)
    assert texts(run(two, 0)) + texts(run(two, 1)) == texts(run(one))


def test_an_empty_shard(make_layout: Make) -> None:
    assert run(make_layout([[]], caption=FAKE)) == []


def test_the_model_must_caption(make_layout: Make, pairs_row: Make) -> None:
    with pytest.raises(ConfigError, match="not captioner"):
        CaptionStage(make_layout([[pairs_row(0)]], caption={"model": "tiny/filter"})).setup()


def test_large_images_that_ingest_allows(make_layout: Make, pairs_row: Make) -> None:
    """The cap is ingest's, in both directions."""
    pairs = [pairs_row(0)]
    assert run(make_layout([pairs], caption=FAKE, ingest={"max_pixels": 48 * 36}))[0]["status"] == "ok"
    assert (
        "above the cap"
        in run(make_layout([pairs], name="small", caption=FAKE, ingest={"max_pixels": 1000}))[0]["error"]
    )


def test_settings(make_layout: Make) -> None:
    """All that decides a caption, but for weights and inputs, which have fingerprints of their own."""
    assert CaptionStage.spec.settings(make_layout([], caption=None).pipeline) is None
    base = CaptionStage.spec.settings(make_layout([]).pipeline)
    changes: list[Record] = [{"samples": 2}, {"seed": 1}, {"batch_size": 5}, {"decoding": {"top_p": 0.8}}]
    others = [CaptionStage.spec.settings(make_layout([], caption=change).pipeline) for change in changes]
    others.append(CaptionStage.spec.settings(make_layout([], dedup={"skip_models": False}).pipeline))
    assert all(other != base for other in others)
    assert CaptionStage.spec.settings(make_layout([], select={"itm_threshold": 0.9}).pipeline) == base
