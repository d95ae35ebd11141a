"""The code of the pages under docs/extending runs, and does what the pages say."""

import csv
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from capfilt import Pipeline, run
from capfilt.analysis.sql import query
from capfilt.analysis.verify import verify
from capfilt.config.pipeline import IngestSettings, SelectSettings
from capfilt.config.source import Source
from capfilt.errors import ConfigError
from capfilt.models import registry
from capfilt.selection.texts import Texts
from capfilt.sinks.base import pictures
from capfilt.sources.base import Reader
from capfilt.stages.catalog import STAGES
from capfilt.training.loop import train
from capfilt.training.objectives.registry import OBJECTIVES
from capfilt.training.recipe import load_recipe, make_recipe
from tests.models.check_system import check_system, encode

ROOT = Path(__file__).parents[2]
CODE = ROOT / "docs/extending/code"


def load(name: str) -> dict[str, Any]:
    return run_path(str(CODE / f"{name}.py"))


@pytest.fixture
def registered() -> Iterator[None]:
    """Systems registered by a test are forgotten."""
    yield
    registry._REGISTERED.clear()
    registry.factories.cache_clear()


def card_folder(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "card.yaml").write_text(text, encoding="utf-8")
    return str(folder)


def test_every_file_is_on_its_page() -> None:
    for file in CODE.glob("*.py"):
        page = (ROOT / "docs/extending" / f"{file.stem}.md").read_text(encoding="utf-8")
        assert f'--8<-- "docs/extending/code/{file.name}"' in page


@pytest.mark.usefixtures("registered", "one_thread")
def test_the_system_keeps_the_contract_of_systems(tmp_path: Path) -> None:
    registry.register("thumbnail", load("system")["FACTORY"])
    card = "system: thumbnail\nroles: [captioner, embedder]\nversion: '1'\n"
    system = registry.load_system(card_folder(tmp_path / "thumbnail", card))
    check_system(system)
    pictures = [Image.new("RGB", (9, 9), "white"), Image.new("RGB", (9, 9), "navy")]
    captions = system.captions(encode(system, pictures), ["a", "b"], [0])  # type: ignore[attr-defined]
    assert [row[0].text for row in captions] == ["a bright picture", "a dark picture"]


@pytest.mark.usefixtures("registered", "one_thread")
def test_the_judge_finds_no_match_in_file_names(tmp_path: Path) -> None:
    registry.register("no_file_names", load("judge")["FACTORY"])
    card = "system: no_file_names\nroles: [judge, embedder]\nscores: [itc, itm]\nversion: '1'\n"
    judge: Any = registry.load_system(card_folder(tmp_path / "judge", card))
    assert judge.card.scores == ("itc", "itm")
    check_system(judge)
    states = encode(judge, [Image.new("RGB", (40, 30), "red")])
    texts = [judge.clean(text) for text in ("IMG_1234.JPG", "a red square")]
    name, words = judge.match(states, [texts])[0]
    assert name.itm == 0
    assert words.itm > 0
    assert name.itc is not None


def test_the_policy_keeps_captions_only_where_no_web_text_matches() -> None:
    policy = load("policy")["WebFirst"]()
    texts = Texts(
        image=np.array([0, 0, 1, 1, 2, 2]),
        origin=np.array(["web", "synthetic"] * 3, dtype=object),
        sample=np.array([-1, 0] * 3),
        itc=np.zeros(6, dtype=np.float32),
        itm=np.array([0.9, 0.9, 0.1, 0.9, 0.9, np.nan], dtype=np.float32),
        refused=np.array([None] * 6, dtype=object),
        failed=np.zeros(6, dtype=bool),
    )
    verdicts = policy.decide(texts, SelectSettings())
    assert verdicts.tolist() == [None, "web_text_kept", "below_itm_threshold", None, None, "no_score"]
    assert set(filter(None, verdicts)) <= {*policy.reasons, "no_score"}
    assert "0.5" in policy.describe(SelectSettings())


def test_the_source_gives_every_line_as_a_row(tmp_path: Path) -> None:
    tsv_reader = load("source")["TsvReader"]
    source = Source.model_construct(type="tsv", path=str(tmp_path), name="mine")
    with pytest.raises(ConfigError, match=r"no captions\.tsv there"):
        tsv_reader(source, 10_000)
    buffer = BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "captions.tsv").write_text("a.png\ta red square\ngone.png\tnothing\n../a.png\tan escape\n")
    reader: Reader = tsv_reader(source, IngestSettings().max_bytes)
    specs = reader.shard_specs(2)
    assert [(spec.start, spec.stop) for spec in specs] == [(0, 2), (2, 3)]
    rows = [row for spec in specs for row in reader.rows(spec)]
    assert [(row.text, row.reason) for row in rows] == [
        ("a red square", None),
        ("nothing", "image_missing"),
        ("an escape", None),
    ]
    assert rows[0].image == buffer.getvalue()
    assert len({row.key for row in rows}) == 3
    assert [row.key for row in reader.rows(specs[0], [1])] == ["1/gone.png"]
    before = reader.identity()
    (tmp_path / "a.png").write_bytes(b"other")
    assert reader.identity() != before


def small_pipeline(folder: Path) -> Pipeline:
    pq.write_table(pq.read_table(ROOT / "data/sample/web/00000.parquet").slice(0, 12), folder / "web.parquet")
    raw = {
        "sources": [{"type": "parquet", "path": str(folder / "web.parquet")}],
        "ingest": {"rows_per_shard": 5},
        "dedup": {"semantic": None},
        "select": {"policy": "keep_all"},
        "emit": [{"format": "pairs"}],
    }
    return Pipeline.model_validate(raw)


@pytest.fixture
def words_stage() -> Iterator[Any]:
    """The stage of the page in the list, after ingest."""
    stage = load("stage")["WordsStage"]
    STAGES.insert(1, stage)
    yield stage
    STAGES.remove(stage)


def test_the_stage_is_run_asked_and_verified(words_stage: Any, tmp_path: Path) -> None:
    result = run(small_pipeline(tmp_path), out=tmp_path / "run", local=True)
    layout = result.layout
    _, rows = query(layout, 'SELECT text, words, "distinct" FROM words JOIN pairs USING (uid)')
    assert len(rows) == 12
    for text, words, distinct in rows:
        assert words == (len(text.split()) or None)
        assert distinct == pytest.approx(len(set(text.lower().split())) / len(text.split()))
    assert verify(layout.run) == []


def test_the_sink_writes_every_kept_text_and_its_image(tmp_path: Path) -> None:
    layout = run(small_pipeline(tmp_path), out=tmp_path / "run", local=True).layout
    write_csv = load("sink")["write_csv"]
    counts = write_csv(pictures(layout), tmp_path / "dataset")
    with (tmp_path / "dataset/csv/pairs.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    kept = pq.read_table(layout.run / "dataset/pairs/pairs.parquet")
    assert [line["text"] for line in lines] == kept["text"].to_pylist()
    assert counts == {"images": len(lines), "texts": len(lines)}
    assert all((tmp_path / "dataset/csv" / line["image"]).is_file() for line in lines)


def test_the_objective_trains_and_resumes(
    tiny_recipe: Callable[..., Path], tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "contrastive", load("objective")["ContrastiveObjective"])
    page = (ROOT / "docs/extending/objective.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert make_recipe(shown, "objective.md").optim.lr == 1e-3
    path = tiny_recipe("pretrain", objective=None, model=None)
    raw = yaml.safe_load(path.read_text())
    del raw["optim"]["schedule"]
    path.write_text(yaml.safe_dump(raw | {"objective": {"type": "contrastive"}}))

    def losses(name: str, watch: Callable[[dict[str, float]], None] | None = None) -> list[float]:
        train(load_recipe(path, [f"out={tmp_path / name}", "optim.epochs=3"]), watch=watch)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["itc"] for line in lines if "itc" in json.loads(line)]

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 7:
            raise KeyboardInterrupt

    whole = losses("whole")
    assert whole[-1] < whole[0]
    with pytest.raises(KeyboardInterrupt):
        losses("killed", stop)
    assert losses("killed") == whole
    assert (tmp_path / "whole/last/model.safetensors").read_bytes() == (
        tmp_path / "killed/last/model.safetensors"
    ).read_bytes()
