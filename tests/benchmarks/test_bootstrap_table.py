"""The bootstrap experiment's parts: splits, exchanged texts, what a row trains on, statistics, resumption."""

import builtins
import copy
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import bootstrap_data, bootstrap_model, bootstrap_rows
from benchmarks.bootstrap_data import Row, exchange, read_rows, settings_of, split
from benchmarks.bootstrap_features import Features, need_packages
from benchmarks.bootstrap_model import Fit, Images, Shape, batches, fit
from benchmarks.bootstrap_recipe import OBJECTIVE, ROWS, Recipe
from benchmarks.bootstrap_report import NOTES, markdown, svg, write
from benchmarks.bootstrap_rows import Lab
from benchmarks.bootstrap_stats import difference, estimate, hits
from benchmarks.bootstrap_table import parse
from benchmarks.bootstrap_text import is_fresh
from capfilt.errors import ConfigError, DataError
from capfilt.models.blip.config import TextConfig
from capfilt.models.blip.text import TextTransformer
from capfilt.models.blip.tokenizer import SPECIAL, wordpiece

WORDS = [f"word{i}" for i in range(40)]
MICRO = Recipe(
    shape=Shape(width=64, layers=(0,), side=1, max_tokens=12),
    steps=2, batch=4, caption_steps=1, filter_steps=1,
    objective=OBJECTIVE.model_copy(update={"queue_size": 4}),
)  # fmt: skip


def made_rows(count: int = 40) -> list[Row]:
    """Two images a cluster."""
    texts = [f"{WORDS[i % 40]} {WORDS[(i * 7 + 3) % 40]}" for i in range(count)]
    return [
        Row(f"u{i}", b"", f"web {text} {i}", f"human {text}", f"c{i // 2}", "test" if i >= count - 8 else "train")
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path, "exchanged")


def make_lab(folder: Path, setting: str) -> Lab:
    rows, rng = made_rows(), np.random.default_rng(0)
    features = Features(
        rng.standard_normal((len(rows), 2, 16)).astype(np.float16),
        rng.standard_normal((len(rows), 2, 4, 8)).astype(np.float16),
    )
    text = folder / "text"
    if not text.exists():
        write_text(text)
    return Lab(rows, Images(features, 1), text, folder / "work", setting, 0, MICRO)


def write_text(folder: Path) -> None:
    """A text transformer's start, as the warm start writes it."""
    from dataclasses import asdict

    from safetensors.torch import save_file

    from capfilt.models.blip.config import MEDConfig, VisionConfig
    from capfilt.models.blip.tokenizer import TextTokenizer

    vocab = [*SPECIAL, "human", "web", *WORDS, *(f"{i}" for i in range(10)), *(f"##{i}" for i in range(10))]
    config = TextConfig(
        len(vocab) + 2, width=64, layers=1, heads=1, mlp_width=64, max_positions=32, dec_id=len(vocab),
        sep_id=vocab.index("[SEP]"),
    )  # fmt: skip
    torch.manual_seed(0)
    TextTokenizer(wordpiece([*vocab, "[DEC]", "[ENC]"]), config).save(folder)
    state = TextTransformer(MEDConfig(VisionConfig(), config, encoder=True, decoder=False)).state_dict()
    save_file({k: v for k, v in state.items() if "cross_attention" not in k}, folder / "text.safetensors")
    (folder / "text.json").write_text(json.dumps(asdict(config)))


@pytest.mark.parametrize("tune", [False, True])
def test_split_cuts_no_cluster_and_parts_are_disjoint(tune: bool) -> None:
    rows = made_rows(400)
    parts = split(rows, seed=1, tune=tune)
    clusters = [{rows[i].cluster for i in part} for part in (parts.human, parts.web, parts.test)]
    assert sum(map(len, clusters)) == len(set.union(*clusters))
    assert 0.24 <= len(parts.human) / (len(parts.human) + len(parts.web)) <= 0.26
    assert tune == all(rows[i].part == "train" for i in parts.test)
    assert split(rows, seed=2).human != split(rows, seed=1).human


def test_exchanged_texts_are_others() -> None:
    rows = made_rows(400)
    plain = split(rows, 0)
    mixed = exchange(plain, rows, 0)
    assert mixed.exchanged is not None
    assert sum(mixed.exchanged) == len(plain.web) // 2
    assert sorted(mixed.web_texts) == sorted(plain.web_texts)
    for place, moved in enumerate(mixed.exchanged):
        assert moved == (mixed.web_texts[place] != rows[mixed.web[place]].web)
    assert exchange(plain, rows, 0) == mixed == settings_of(rows, "exchanged", 0)


def test_bundled_sample_has_all_parts() -> None:
    parts = split(read_rows(None), 0)
    assert min(map(len, (parts.human, parts.web, parts.test))) > 30


def test_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"photos-train\.parquet: not there"):
        read_rows(tmp_path)


def test_diagrams_join_the_web_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(uid: str, cluster: str, web: str | None = "a caption") -> dict[str, object]:
        return {"uid": uid, "image": {"bytes": b"x"}, "web_text": web, "human_text": "a person", "cluster": cluster}

    photographs = [row(f"p{i}", f"c{i}") for i in range(8)]
    pq.write_table(pa.Table.from_pylist(photographs), tmp_path / "photos-train.parquet")
    pq.write_table(pa.Table.from_pylist([row("v", "cv")]), tmp_path / "photos-val.parquet")
    assert all(r.part != "web" for r in read_rows(tmp_path))
    diagrams = [row(f"d{i}", f"e{i}") for i in range(6)]
    diagrams += [row("no text", "e6", None), row("a photograph's", "c3"), row("a test's", "cv")]
    pq.write_table(pa.Table.from_pylist(diagrams), tmp_path / "diagrams-train.parquet")
    rows = read_rows(tmp_path)
    joined = [r for r in rows if r.part == "web"]
    assert {r.uid for r in joined} == {f"d{i}" for i in range(6)}
    assert rows[-6:] == joined
    assert {r.human for r in joined} == {""}
    parts = split(rows, 0)
    assert set(parts.web) > set(range(9, 15))
    assert len(parts.human) == 2
    monkeypatch.setattr(bootstrap_data, "DIAGRAMS", 4)
    assert read_rows(tmp_path) == rows[:-2]


def test_an_epoch_has_every_image_once_with_any_of_its_texts() -> None:
    pairs = [(i, text) for i in range(10) for text in ("web", "caption")]
    feed = batches(pairs, 4, 0)
    seen = [pair for _ in range(50) for pair in next(feed)]
    assert sorted(image for image, _ in seen[:20]) == sorted([*range(10)] * 2)
    assert set(seen) == set(pairs)


def test_minilm_stays_but_for_the_captioner(lab: Lab) -> None:
    raw, start = dict(lab.model("row-raw").text.named_parameters()), dict(lab._fresh().text.named_parameters())
    moved = {name for name in start if not torch.equal(raw[name], start[name])}
    assert moved
    assert all(is_fresh(name) for name in moved)
    captioner = dict(lab.model("captioner").text.named_parameters())
    assert not torch.equal(captioner["layers.0.up.weight"], raw["layers.0.up.weight"])


def test_a_text_is_read_once_as_the_layers_read_it(lab: Lab) -> None:
    med = lab._fresh().eval()
    ids, mask = lab.tokenizer.batch(["human word1 word2", "web word3"])
    states = TextTransformer.run(med.text, "encoder", ids, mask, None)
    for row, there, found in zip(states, mask, med.text.run("encoder", ids, mask, None), strict=True):
        assert torch.allclose(found[0], row[there].mean(0), atol=1e-6)
    known = med.text.read.texts
    assert copy.deepcopy(med).text.read.texts is known
    before = dict(known)
    med.text.run("encoder", *lab.tokenizer.batch(["web word3"]), None)
    assert {key: id(value) for key, value in known.items()} == {key: id(value) for key, value in before.items()}
    trained = med.train().text.run("encoder", ids, mask, None)
    assert 0.1 < (trained == 0).float().mean() < 0.7


def test_itm_and_lm_are_part_of_some_steps(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, forward = [], bootstrap_model.BlipObjective.forward

    def record(self, batch):
        seen.append((self.settings.itm > 0, self.settings.lm > 0))
        return forward(self, batch)

    monkeypatch.setattr(bootstrap_model.BlipObjective, "forward", record)
    how = Fit(4, 4, 1e-4, MICRO.objective, every=2, lm_every=3)
    fit(lab.model("row-raw"), lab.tokenizer, lab.images, lab.human, how, 0)
    assert seen[-4:] == [(True, True), (False, False), (True, False), (False, True)]


def test_rows_train_on_what_they_say(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    n, web = len(lab.human), len(lab.web)
    monkeypatch.setattr(lab, "captions", lambda model, count=3: [["word1 word2"] * count] * web)
    monkeypatch.setattr(lab, "_captions", lambda name, model, decoding, count: [["word1 word2"] * count] * web)
    monkeypatch.setattr(lab, "scores", lambda model, name, texts: [[k % 2 for k, _ in enumerate(t, 1)] for t in texts])
    sizes = {row: len(lab.dataset(row)) - n for row in ROWS if row != "two-rounds"}
    assert (sizes["raw"], sizes["captioner"], sizes["filter"], sizes["human"]) == (web, 4 * web, web, 0)
    assert sizes["captioner+filter"] == sizes["control"] == sizes["ensemble"] == web + 2 * web
    assert sizes["one-caption"] == sizes["beam"] == 2 * web
    assert sizes["five-captions"] == web + 3 * web
    assert all(pair in lab.dataset("raw") for pair in lab.dataset("control"))


def test_every_row_runs_in_equal_steps_and_nothing_twice(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    done, fit = [], bootstrap_rows.fit
    monkeypatch.setattr(bootstrap_rows, "fit", lambda *args: done.append(args[4]) or fit(*args))
    found = {row: lab.result(row) for row in ROWS}
    pretrainings = [how for how in done if how == lab.pretraining]
    assert len(pretrainings) == len(ROWS)
    assert {0 <= one["t2i_r1"] <= 1 for one in found.values()} == {True}
    assert found["control"]["pairs"] == found["captioner+filter"]["pairs"]
    assert 0 <= found["filter"]["auc"] <= 1
    done.clear()
    again = make_lab(lab.folder.parents[2], "exchanged")
    assert {row: again.result(row) for row in ROWS} == found
    assert not done
    results = {("exchanged", row, 0): one for row, one in found.items()}
    assert "captioner+filter - raw" in markdown(results, "x")
    assert svg(results).count("<circle") == 2 * len(found)


def test_a_killed_piece_is_made_again(lab: Lab) -> None:
    def broken() -> int:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        lab.artefact("x", broken)
    assert not list(lab.folder.glob("x*"))
    assert lab.artefact("x", lambda: 7) == 7 == lab.artefact("x", broken)


def test_paired_difference_on_known_numbers() -> None:
    one = {"t2i_ranks": [1, 1, 2, 9], "i2t_ranks": [1, 2, 1, 9]}
    assert hits(one).tolist() == [1.0, 0.5, 0.5, 0.0]
    base = np.tile([0.0, 1.0], 100)
    better = difference([base + 0.1, base + 0.1], [base, base])
    assert better.verdict == "better"
    assert np.allclose(better, 0.1)
    assert difference([base, base], [base + 0.1, base + 0.1]).verdict == "worse"
    assert difference([base, base], [base[::-1], base[::-1]]).verdict == "not told apart"
    whole = estimate([base])
    assert whole.mean == 0.5
    assert 0.4 < whole.low < 0.5 < whole.high < 0.6


def test_notes_stay_when_the_tables_are_written_anew(tmp_path: Path) -> None:
    one = {"t2i_ranks": [1, 2], "i2t_ranks": [1, 1], "cider_each": [0.1, 0.2], "cider": 0.15, "pairs": 3}
    results = {("as-is", "raw", 0): one | {f"{way}_r{k}": 0.5 for way in ("t2i", "i2t") for k in (1, 5, 10)}}
    write(results, tmp_path, "x")
    file = tmp_path / "bootstrap.md"
    assert "What was tried" not in file.read_text()
    file.write_text(f"{file.read_text()}\n{NOTES}\n\nA note.\n")
    before = file.read_text()
    write(results, tmp_path, "x")
    assert file.read_text() == before


def test_wrong_row_is_told() -> None:
    with pytest.raises(ConfigError, match="--rows: no both; there are raw"):
        parse(["--rows", "raw,both"])


def test_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_lite(name: str, *args: object, **options: object) -> object:
        if name.startswith("efficientnet"):
            raise ImportError(name=name)
        return real(name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", no_lite)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[distill\]'"):
        need_packages()
