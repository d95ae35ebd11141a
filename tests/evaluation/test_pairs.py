import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.errors import DataError, InputError
from capfilt.evaluation.pairs import load_pairs


class Hostile(pa.ExtensionType):
    """Stands for a type whose reader runs code: it must never be asked for a value."""

    def __init__(self):
        super().__init__(pa.string(), "tests.hostile")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        return cls()


@pytest.fixture
def hostile():
    pa.register_extension_type(Hostile())
    yield Hostile()
    pa.unregister_extension_type("tests.hostile")


def test_reads_images_and_texts(colours):
    pairs = load_pairs(colours)
    assert len(pairs.images) == len(pairs.texts) == len(set(pairs.image_ids)) == 10
    assert pairs.image_index.tolist() == list(range(10))
    assert pairs.texts[0] == "A red square, hung on a wall."
    image = pairs.decode(0)
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 0, 0))
    assert (pairs.skipped, pairs.empty_texts) == ((), 0)


def test_rows_with_the_same_bytes_are_one_image(write, png):
    path = write(image=[png("red"), png("blue"), png("red")], text=["one", "two", "three"])
    pairs = load_pairs(path)
    assert pairs.references == [["one", "three"], ["two"]]
    assert pairs.image_index.tolist() == [0, 0, 1]


def test_rows_with_one_image_id_are_one_image(write, png):
    images = [png("red"), png("green"), png("blue"), png("blue")]
    pairs = load_pairs(write(image=images, text=list("abcd"), cluster=[7, 7, None, 8]), image_id="cluster")
    assert pairs.references == [["a", "b"], ["c"], ["d"]]
    assert pairs.image_ids[0] == "7"
    assert pairs.decode(0).getpixel((0, 0)) == (255, 0, 0)


def test_several_text_columns_and_lists(write, png):
    path = write(image=[png("red"), png("blue")], a=["x", None], b=[["y", "z"], ["w", " "]])
    pairs = load_pairs(path, ["a", "b"])
    assert pairs.references == [["x", "y", "z"], ["w"]]
    assert pairs.empty_texts == 2


def test_empty_texts_and_broken_images_are_counted(write, png):
    broken = [png("red"), b"not an image", png("green")[:50], None, png("blue")]
    pairs = load_pairs(write(image=broken, text=["fine", "b", "c", "d", " .!\n"]))
    assert pairs.texts == ["fine"]
    assert pairs.empty_texts == 1
    assert [skipped.row for skipped in pairs.skipped] == [1, 2, 3]
    assert pairs.skipped[2].reason == "no image bytes"
    assert "pairs.parquet: row 1:" in str(pairs.skipped[0])


def test_a_file_without_any_usable_pair_is_refused(write):
    with pytest.raises(DataError, match=r"1 images cannot be read; first: .*row 0"):
        load_pairs(write(image=[b"nothing"], text=["a"]))


def test_a_folder_is_read_in_order_of_name_and_limited(write, png):
    write("b.parquet", image=[png("red")] * 6, text=list("ghijkl"))
    folder = write("a.parquet", image=[png("blue")] * 6, text=list("abcdef")).parent
    assert "".join(load_pairs(folder).texts) == "abcdefghijkl"
    assert "".join(load_pairs(folder, limit=8).texts) == "abcdefgh"
    with pytest.raises(InputError):
        load_pairs(folder, limit=0)


def test_a_missing_column_is_named_with_what_is_there(colours):
    with pytest.raises(DataError, match=r"pairs.parquet: no column 'txet'; .*image, text, other.* mean 'text'"):
        load_pairs(colours, "txet")
    with pytest.raises(DataError, match="no column 'zzz'"):
        load_pairs(colours, image_id="zzz")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pa.array(["x.png"]), "text": ["a"]}, "'image' is string; expected binary"),
        ({"image": [b"x"], "text": [1.5]}, "'text' is double; expected string"),
        ({"image": [b"x"], "text": ["a"], "id": [0.5]}, "'id' is double; expected string or integer"),
    ],
)
def test_a_column_of_another_type_is_refused(write, columns, message):
    with pytest.raises(DataError, match=message):
        load_pairs(write(**columns), image_id="id" if "id" in columns else None)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_foreign_extension_type_is_refused_before_data_is_read(write, png, hostile, monkeypatch, nested, known):
    column = pa.ExtensionArray.from_storage(hostile, pa.array(["a"]))
    if nested:
        column = pa.ListArray.from_arrays(pa.array([0, 1]), pa.StructArray.from_arrays([column], names=["inner"]))
    path = write(image=[png("red")], text=["a"], extra=column)
    if not known:
        pa.unregister_extension_type("tests.hostile")

    def never(*args, **kwargs):
        raise AssertionError("data was read")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "iter_batches", never)
        with pytest.raises(DataError, match=r"extra.*tests\.hostile"):
            load_pairs(path)
    if not known:
        pa.register_extension_type(hostile)


def test_what_is_not_there_or_no_parquet_is_refused(tmp_path):
    with pytest.raises(DataError):
        load_pairs(tmp_path / "missing.parquet")
    with pytest.raises(DataError):
        load_pairs(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"x\.parquet"):
        load_pairs(tmp_path)


def test_image_index_fits_numpy(colours):
    assert load_pairs(colours).image_index.dtype == np.int64
