"""The bundled sample as it ships, and the rules that its builder chose it by."""

import importlib.util
import io
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

DATA = Path(__file__).parents[2] / "data"
SAMPLE = DATA / "sample"
COLUMNS = ["key", "url", "image", "text", "licence", "credit"]
MAX_BYTES = 8_000_000
Rows = dict[str, dict[str, Any]]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


pictures = load("sample_pictures")  # first: the builder imports it by name
builder = load("build_sample")


def read(folder: str) -> Rows:
    tables = [pq.read_table(path) for path in sorted((SAMPLE / folder).glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


@pytest.fixture(scope="module")
def web() -> Rows:
    return read("web")


@pytest.fixture(scope="module")
def human() -> Rows:
    return read("human")


@pytest.fixture(scope="module")
def truth() -> Rows:
    return {row["key"]: row for row in pq.read_table(SAMPLE / "truth.parquet").to_pylist()}


def of_kind(truth: Rows, kind: str) -> list[dict[str, Any]]:
    return [row for row in truth.values() if row["kind"] == kind]


def thumbnail(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((16, 16)), dtype=float)


def test_size_and_counts(web: Rows, human: Rows) -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) <= MAX_BYTES
    assert 800 <= len(web) + len(human) <= 1200
    assert 100 <= len(human) <= 140
    assert not web.keys() & human.keys()
    assert sum(key.startswith("lomiri") for key in human | web) >= 14


def test_columns_are_what_datasets_writes() -> None:
    files = [*SAMPLE.glob("web/*.parquet"), *SAMPLE.glob("human/*.parquet")]
    assert len(files) == 4
    for path in files:
        schema = pq.read_schema(path)
        assert schema.names == COLUMNS
        assert schema.field("image").type == builder.IMAGE
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert list(features) == COLUMNS
        assert features["image"] == {"_type": "Image"}


def test_truth_is_about_exactly_the_web_rows(web: Rows, truth: Rows) -> None:
    assert pq.read_schema(SAMPLE / "truth.parquet").equals(builder.TRUTH)
    assert truth.keys() == web.keys()
    kinds = Counter(row["kind"] for row in truth.values())
    assert set(kinds) == {"plain", "mismatched", "exact_duplicate", "near_duplicate", "broken"}
    assert 0.2 <= kinds["mismatched"] / len(web) <= 0.3
    assert 25 <= kinds["exact_duplicate"] <= 35
    assert 25 <= kinds["near_duplicate"] <= 35
    assert kinds["broken"] == 8
    for row in truth.values():
        assert row["matches"] == {"mismatched": False, "broken": None}.get(row["kind"], True)
        assert (row["of"] is None) == (row["kind"] in ("plain", "broken"))


def test_every_row_has_text_licence_and_credit(web: Rows, human: Rows) -> None:
    for row in (web | human).values():
        assert all(row[name] for name in ("url", "text", "licence", "credit"))
    licences = {row["licence"] for row in (web | human).values()}
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert all(licence in readme for licence in licences)
    assert all(row["credit"] in readme for row in (web | human).values())


def test_mismatched_texts_come_from_another_row_of_the_same_package(web: Rows, truth: Rows) -> None:
    rows = of_kind(truth, "mismatched")
    assert len({row["of"] for row in rows}) == len(rows)
    for row in rows:
        assert truth[row["of"]]["kind"] == "mismatched"
        assert web[row["key"]]["text"] != web[row["of"]]["text"]
        assert row["key"].rpartition("-")[0] == row["of"].rpartition("-")[0]


def test_duplicates_are_exact_and_near(web: Rows, truth: Rows) -> None:
    for row in of_kind(truth, "exact_duplicate"):
        assert web[row["key"]]["image"]["bytes"] == web[row["of"]]["image"]["bytes"]
    for row in of_kind(truth, "near_duplicate"):
        copy, original = (web[key]["image"]["bytes"] for key in (row["key"], row["of"]))
        assert copy != original
        assert np.abs(thumbnail(copy) - thumbnail(original)).mean() < 20


def test_only_broken_images_cannot_be_read(web: Rows, truth: Rows) -> None:
    for key, row in web.items():
        try:
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                image.load()
            broken = False
        except (TypeError, OSError, Image.DecompressionBombError):
            broken = True
        assert broken == (truth[key]["kind"] == "broken"), key


def test_no_undeclared_exact_duplicates(web: Rows, human: Rows, truth: Rows) -> None:
    originals = [row for key, row in web.items() if truth[key]["kind"] in ("plain", "mismatched")]
    contents = [row["image"]["bytes"] for row in [*originals, *human.values()]]
    assert len(set(contents)) == len(contents)


def test_human_part_shares_no_picture_with_web(web: Rows, human: Rows, truth: Rows) -> None:
    seen = np.stack([thumbnail(row["image"]["bytes"]) for key, row in web.items() if truth[key]["kind"] != "broken"])
    for row in human.values():
        assert np.abs(seen - thumbnail(row["image"]["bytes"])).mean(axis=(1, 2, 3)).min() > 1
    assert not {row["url"] for row in human.values()} & {row["url"] for row in web.values()}


def test_formats_differ(web: Rows, truth: Rows) -> None:
    plain = (web[row["key"]]["image"]["bytes"] for row in of_kind(truth, "plain"))
    assert {Image.open(io.BytesIO(data)).format for data in plain} == {"WEBP", "JPEG", "PNG", "GIF"}


def test_held_out_list_follows_the_rule() -> None:
    names = (SAMPLE / "held_out.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(names)) == len(names) > 500
    assert all(builder.is_sample(name) for name in names)


def test_rule_takes_one_picture_of_five() -> None:
    assert 0.17 < np.mean([builder.is_sample(f"emoji-{number:x}") for number in range(2000)]) < 0.23


@pytest.mark.parametrize(
    ("text", "describable"),
    [
        ("bee1, insect, animal, bee", True),
        ("Tasto 1, unsorted", False),
        ("people, icon, people", False),
        ("Clipart by Nicu Buculei - bee, insect", False),
    ],
)
def test_texts_must_say_what_is_seen(text: str, describable: bool) -> None:
    assert pictures.is_describable(text, frozenset({"bee", "insect", "people"})) == describable


@pytest.mark.parametrize(
    ("text", "clashes"), [("two cats", True), ("kitty cat", True), ("catamaran", True), ("dog, animal", False)]
)
def test_clash_finds_words_alike(text: str, clashes: bool) -> None:
    assert pictures.clash(frozenset({"cat", "pet"}), text) == clashes


def test_deranged_texts_never_name_the_picture() -> None:
    names = ["red apple", "green apple", "grey wolf", "old oak", "tin drum", "ice hockey", "hot tea"]
    items = [
        pictures.Picture("noto", name, name, None, pictures.words(name), b"", "", "", "", "")
        for name in names
    ]  # fmt: skip
    rows = [builder.Row(item, item.text, b"", "webp") for item in items]
    assert builder.derange(rows, random.Random(0))
    assert sorted(row.text for row in rows) == sorted(names)
    assert not any(pictures.clash(row.picture.names, row.text) for row in rows)
    assert not builder.derange([rows[0], rows[1]], random.Random(0))


def test_bomb_claims_what_it_has_not() -> None:
    assert len(builder.bomb()) < 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(builder.bomb()))


def test_no_path_of_the_building_machine() -> None:
    text = (SAMPLE / "README.md").read_text(encoding="utf-8") + (SAMPLE / "held_out.txt").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|work|root)/", text)
