import logging
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from capfilt.errors import DataError, InputError
from capfilt.training.augment import Augment
from capfilt.training.batch import TrainBatch
from capfilt.training.epoch_order import epoch_order
from capfilt.training.loader import BatchDataset, BatchPlan, TrainLoader
from capfilt.training.samples import image_key
from capfilt.training.sources import SourceConfig, build_index

AUGMENT = Augment(size=8)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(shade: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (10, 10), (shade % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: int = 40, row_group_size: int = 7, **columns: Any) -> Path:
    images = columns.pop("image", [{"bytes": png(i), "path": None} for i in range(rows)])
    data = {"uid": [f"{path.stem}{i}" for i in range(rows)], "text": [f"text {i}" for i in range(rows)]} | columns
    arrays = {name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in data.items()}
    arrays["image"] = images if isinstance(images, pa.Array) else pa.array(images, IMAGE)
    pq.write_table(pa.table(arrays), path, row_group_size=row_group_size, write_page_checksum=True)
    return path


def loader(path: Path | str, batch_size: int = 4, seed: int = 0, workers: int = 0, **options: Any) -> TrainLoader:
    plan = {name: options.pop(name) for name in ("rank", "world", "shuffle_row_groups") if name in options}
    sources = [SourceConfig(path=str(path), **options)]
    return TrainLoader(sources, AUGMENT, BatchPlan(batch_size, seed, **plan), workers)


def uids(loader: TrainLoader, epoch: int = 0) -> list[str]:
    return [uid for batch in loader.batches(epoch) for uid in batch.uids]


def same(a: TrainBatch, b: TrainBatch) -> bool:
    pixels, ids = torch.equal(a.pixels, b.pixels), torch.equal(a.image_ids, b.image_ids)
    return pixels and ids and (a.texts, a.uids) == (b.texts, b.uids)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("loader") / "pairs.parquet")


def test_epochs_differ_and_half_weights_change_by_epoch(pairs: Path) -> None:
    whole, half = loader(pairs), loader(pairs, weight=0.5)
    assert sorted(uids(whole)) == sorted(f"pairs{i}" for i in range(40))
    assert uids(whole) != uids(whole, 1)
    assert half.epoch_samples == 20
    assert set(uids(half)) != set(uids(half, 1))


def test_sources_are_spread_over_the_epoch(tmp_path: Path) -> None:
    big = write(tmp_path / "big.parquet", 80, 4)
    small = write(tmp_path / "small.parquet", 40, 4)
    sources = [SourceConfig(path=str(big)), SourceConfig(path=str(small))]
    both = TrainLoader(sources, AUGMENT, BatchPlan(12, 0, shuffle_row_groups=3))
    share = [sum(uid.startswith("small") for uid in batch.uids) for batch in both.batches(0)]
    assert len(share) == 10
    assert min(share) >= 2
    assert max(share) <= 6


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), world=st.sampled_from([2, 3]), batch=st.integers(1, 4))
def test_ranks_take_slices_of_the_single_rank_batch(pairs: Path, seed: int, world: int, batch: int) -> None:
    single = list(loader(pairs, batch * world, seed).batches(1))
    ranks = [list(loader(pairs, batch, seed, rank=rank, world=world).batches(1)) for rank in range(world)]
    assert {len(steps) for steps in ranks} == {len(single)} == {40 // (batch * world)}
    for step, whole in enumerate(single):
        parts = [steps[step] for steps in ranks]
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
        assert torch.equal(torch.cat([part.image_ids for part in parts]), whole.image_ids)
        assert [text for part in parts for text in part.texts] == whole.texts


def test_workers_change_nothing_and_a_left_epoch_does_not_disturb_the_next(pairs: Path) -> None:
    alone, helped = loader(pairs), loader(pairs, workers=2)
    next(helped.batches(0))
    for epoch, start in ((0, 0), (1, 3)):
        expected, found = list(alone.batches(epoch, start)), list(helped.batches(epoch, start))
        assert len(found) == 10 - start
        assert all(map(same, expected, found))


@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 10), epoch=st.integers(0, 3))
def test_resuming_equals_skipping(pairs: Path, start: int, epoch: int) -> None:
    skipped = list(loader(pairs).batches(epoch))[start:]
    resumed = list(loader(pairs).batches(epoch, start))
    assert len(skipped) == len(resumed)
    assert all(map(same, skipped, resumed))


def test_batch_contract(pairs: Path) -> None:
    batch = next(loader(pairs).batches(0))
    assert (batch.pixels.shape, batch.pixels.dtype) == ((4, 3, 8, 8), torch.float32)
    assert batch.image_ids.dtype == torch.int64
    assert batch.image_ids.tolist() == [image_key(uid) for uid in batch.uids]
    assert [f"text {uid.removeprefix('pairs')}" for uid in batch.uids] == batch.texts


def test_the_index_reads_no_image_and_pickles_small(pairs: Path) -> None:
    index = build_index([SourceConfig(path=str(pairs))])
    assert len(pickle.dumps(index)) < 5000
    dataset = loader(pairs)._loader.dataset
    assert isinstance(pickle.loads(pickle.dumps(dataset)), BatchDataset)


def test_broken_rows_are_stood_in_for_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images: list[Any] = [{"bytes": png(i), "path": None} for i in range(12)]
    images[3], images[7], images[9] = {"bytes": b"junk", "path": None}, None, {"bytes": None, "path": "/etc/passwd"}
    path = write(tmp_path / "a.parquet", 12, 5, image=images)
    with caplog.at_level(logging.WARNING):
        broken = loader(path, 4)
        epochs = [uids(broken, epoch) for epoch in (0, 1)]
    assert set(broken.replaced) == {"a3", "a7", "a9"}
    assert "cannot be decoded" in broken.replaced["a3"]
    assert "no image bytes" in broken.replaced["a9"]
    assert [record.getMessage().split(":")[0] for record in caplog.records if "takes its place" in record.getMessage()]
    assert len([record for record in caplog.records if "row a3:" in record.getMessage()]) == 1
    index = broken.index
    for epoch, found in enumerate(epochs):
        order = [f"a{index.row[i] + 5 * index.group[i]}" for i in epoch_order(index, 0, epoch)]
        expected = [next(u for u in order[i:] + order[:i] if u not in broken.replaced) for i in range(12)]
        assert found == expected
    assert [uids(loader(path, 4), epoch) for epoch in (0, 1)] == epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_all_broken_is_a_data_error(tmp_path: Path, workers: int) -> None:
    path = write(tmp_path / "a.parquet", 6, image=[{"bytes": b"junk", "path": None}] * 6)
    with pytest.raises(DataError, match="6 rows in succession cannot be used; the first is a"):
        next(loader(path, workers=workers).batches(0))


def test_a_flipped_page_is_a_data_error_not_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 12, 5)
    sound = loader(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IHDR")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="row group 0 cannot be read"):
        uids(sound)


def test_rows_without_a_text_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "a.parquet", 6, 4, text=["a", None, "...", "  ", "b", "\u00a0"], other=[None, "c"] + [None] * 4
    )
    with caplog.at_level(logging.WARNING):
        assert sorted(uids(loader(path, 1, text=["text", "other"]))) == ["a0", "a1", "a4"]
    assert "3 rows have no text" in caplog.text
    with pytest.raises(DataError, match="no row has a text"):
        loader(write(tmp_path / "b.parquet", 2, text=["", None]))


def test_an_empty_list_is_no_missing_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.parquet", 4, 3, text=[["a"], [], [""], None])
    with caplog.at_level(logging.WARNING):
        assert sorted(uids(loader(path, 1, text=["text"]))) == ["a0"]
    assert "2 rows have no text" in caplog.text


def test_every_text_is_a_sample_of_its_own(tmp_path: Path) -> None:
    many = [["a", None, "b"], None, [], ["c"]]
    path = write(tmp_path / "a.parquet", 4, 3, text=["d", "e", None, "f"], many=many)
    all_texts = loader(path, 1, text=["many", "text"], text_mode="all")
    assert sorted(text for batch in all_texts.batches(0) for text in batch.texts) == list("abcdef")
    limited = loader(path, 1, text=["many", "text"], text_mode="all", limit=2)
    assert sorted(text for batch in limited.batches(0) for text in batch.texts) == list("abde")


def test_sampled_texts_change_by_epoch_and_follow_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 40, 40, other=["other"] * 40)
    sampled = loader(path, 8, text=["text", "other"], text_weights=[1, 3])
    others = [[text == "other" for batch in sampled.batches(e) for text in batch.texts] for e in range(5)]
    assert others[0] != others[1]
    assert sum(map(sum, others)) / 200 == pytest.approx(0.75, abs=0.1)


def test_min_and_limit_choose_rows(tmp_path: Path) -> None:
    score = pa.array([None, float("nan"), *[i / 40 for i in range(2, 40)]], pa.float32())
    path = write(tmp_path / "a.parquet", score=score)
    assert {int(uid[1:]) for uid in uids(loader(path, 1, min={"score": 0.5}))} == set(range(20, 40))
    assert {int(uid[1:]) for uid in uids(loader(path, 1, min={"score": 0.5}, limit=9))} == set(range(20, 29))
    assert {int(uid[1:]) for uid in uids(loader(path, 1, limit=7))} == set(range(7))


def test_names_and_image_ids(tmp_path: Path) -> None:
    first = write(tmp_path / "0.parquet", 4, 3, picture=["x", "y", "x", None])
    (tmp_path / "sub").mkdir()
    second = write(tmp_path / "sub" / "0.parquet", 4, 3)
    by_column = {
        u: i
        for b in loader(first, 1, image_id="picture").batches(0)
        for u, i in zip(b.uids, b.image_ids.tolist(), strict=True)
    }
    assert by_column == {"00": image_key("x"), "01": image_key("y"), "02": image_key("x"), "03": image_key("03")}
    sources = [SourceConfig(path=str(path), uid=None) for path in (first, second)]
    nameless = list(TrainLoader(sources, AUGMENT, BatchPlan(8, 0)).batches(0))
    assert sorted(nameless[0].uids) == sorted(2 * [f"0.parquet:{i}" for i in range(4)])
    assert len(set(nameless[0].image_ids.tolist())) == 8
    assert image_key("x") == int.from_bytes(bytes.fromhex("2d711642b726b044"), "big", signed=True)


def test_a_plain_binary_column_as_img2dataset_writes_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 4, image=pa.array([png(i) for i in range(4)], pa.large_binary()))
    assert len(uids(loader(path))) == 4


def test_errors_say_what_to_do(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"40 samples, fewer than one global batch of 30 x 2.*lower batch_size"):
        loader(pairs, 30, world=2)
    for options, message in (
        ({"text": "caption"}, "no column 'caption'; it has uid, text"),
        ({"uid": "key"}, "no column 'key'"),
        ({"image": "text"}, "image column 'text' is string"),
        ({"text": "image"}, "text column 'image'"),
        ({"min": {"text": 1}}, "expected a number"),
    ):
        with pytest.raises(DataError, match=message):
            loader(pairs, **options)
    with pytest.raises(InputError, match="rank=2"):
        loader(pairs, rank=2, world=2)
    with pytest.raises(InputError, match="workers must be >= 0; got -1"):
        loader(pairs, workers=-1)
    for wrong in ({"batch_size": 0}, {"seed": -1}, {"shuffle_row_groups": 0}, {"rank": -1}, {"shuffle_bytes": 0}):
        with pytest.raises(InputError, match=f"got .*{next(iter(wrong))}={next(iter(wrong.values()))}"):
            BatchPlan(**{"batch_size": 4, "seed": 0} | wrong)
    with pytest.raises(InputError, match="steps 0 to 10"):
        next(loader(pairs).batches(0, 11))
    for wrong in ({"weight": 0}, {"texts": "a"}, {"text": []}, {"text_weights": [1, 2]}):
        with pytest.raises(ValidationError):
            SourceConfig(path="x", **wrong)
