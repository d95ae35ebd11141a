"""The recipes and fingerprints of a round's trainings, without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfilt.config.load import validate
from capfilt.config.pipeline import Pipeline
from capfilt.errors import CapfiltError, ConfigError
from capfilt.models.hub import resolve
from capfilt.rounds.training_set import TrainingSet
from capfilt.rounds.trainings import Training, check_trainings, round_trainings

Changes = dict[str, Any]
DATA = TrainingSet(Path("t"), {"human": 3, "web": 2, "synthetic": 4})


def pipeline(first: Changes | None = None, captioner: Changes | None = None, **pretrain: Any) -> Pipeline:
    shared = {
        "data": {"max_tokens": 16},
        "augment": {"size": 128},
        "optim": {"lr": 1e-4, "schedule": "cosine", "epochs": 1, "global_batch": 8},
        "run": {"threads": 1, "checkpoint_every": 2, "log_every": 1},
    }
    contrastive = {**shared, "objective": {"queue_size": 32}}
    model = {"init": "tiny/pretrained", "dropout": 0.2}
    raw = {
        "name": "loop",
        "rounds": 2,
        "sources": [{"type": "parquet", "path": role, "role": role} for role in ("web", "human")],
        "caption": {"model": "tiny/captioner"},
        "score": {"model": "tiny/filter"},
        "pretrain": {"recipe": {**contrastive, "model": model, **(first or {})}, "weights": {"human": 2}, **pretrain},
        "finetune_captioner": {"recipe": {**shared, "model": {"dropout": 0.1}, **(captioner or {})}},
        "finetune_filter": {"recipe": contrastive},
        "evaluate": {"holdout": 0.3},
    }
    return validate(raw, "loop.yaml")


def trainings(made: Pipeline, previous: Path | None = None) -> list[Training]:
    return round_trainings(made, Path("r"), DATA, "abc", previous)


def test_fingerprints_do_not_change_between_versions() -> None:
    found = {one.stage: one.fingerprint for one in trainings(pipeline())}
    assert found == {
        "pretrain": "d01ec0a36d85",
        "finetune_captioner": "3329e1b430f3",
        "finetune_filter": "f35097410212",
    }


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"run": {"threads": 2, "log_every": 7, "compile": True}}, True),
        ({"run": {"seed": 1}}, False),
        ({"run": {"precision": "bf16"}}, False),
        ({"model": {"init": "tiny/filter", "dropout": 0.2}}, False),
        ({"model": {"init": "tiny/pretrained", "dropout": 0.3}}, False),
        ({"objective": {"queue_size": 64}}, False),
    ],
)
def test_what_the_fingerprint_depends_on(changes: Changes, same: bool) -> None:
    before, after = (trainings(made) for made in (pipeline(), pipeline(changes)))
    assert [(a.fingerprint == b.fingerprint) for a, b in zip(before, after, strict=True)] == [same] * 3


def test_fine_tunings_start_from_the_pre_trained_model_on_human_pairs() -> None:
    first, *tuned = trainings(pipeline())
    assert [one.folder.name for one in (first, *tuned)] == [f"{one.stage}-{one.fingerprint}" for one in (first, *tuned)]
    assert [(s.text, s.weight, s.text_mode) for s in first.recipe.data.sources] == [
        ("human", 2, "all"),
        ("web", 1, "all"),
        ("synthetic", 1, "all"),
    ]
    for one in tuned:
        assert one.recipe.model.model_dump()["init"] == str(first.model)
        assert [source.text for source in one.recipe.data.sources] == ["human"]


def test_continuing_starts_from_the_round_before_and_keeps_the_dropout(tmp_path: Path) -> None:
    previous = resolve("tiny/pretrained")
    made = pipeline({"model": {"shape": {}, "tokenizer": str(tmp_path)}}, start="continue")
    model = trainings(made, previous)[0].recipe.model.model_dump(exclude_none=True)
    assert model == {"init": str(previous)}
    kept = trainings(pipeline(start="continue"), previous)[0].recipe.model.model_dump(exclude_none=True)
    assert kept == {"init": str(previous), "dropout": 0.2}
    assert trainings(pipeline(), previous)[0].recipe.model.model_dump()["init"] == "tiny/pretrained"


def test_texts_drawn_by_origin() -> None:
    human, drawn = trainings(pipeline(texts="sample"))[0].recipe.data.sources
    assert (human.text, human.weight) == ("human", 2)
    assert (drawn.text, drawn.text_weights) == (["web", "synthetic"], [1, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pipeline({"out": "x"}), "pretrain.recipe.out: the loop sets it; remove the key"),
        (lambda: pipeline({"data": {"sources": []}}), "pretrain.recipe.data.sources: the loop sets it"),
        (lambda: pipeline(captioner={"model": {"init": "x"}}), "finetune_captioner.recipe.model.init: it starts from"),
        (lambda: pipeline(captioner={"optim": {"lrr": 1}}), "finetune_captioner.recipe: optim.lrr: no such key"),
        (lambda: pipeline({"objective": {"type": "x"}}), "pretrain.recipe: objective.type: no objective has the name"),
    ],
)
def test_mistakes_are_found_before_anything_runs(make: Callable[[], Pipeline], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_trainings(make())


def test_a_start_that_does_not_exist_is_found_before_anything_runs() -> None:
    with pytest.raises(CapfiltError, match="tiny/nothing"):
        check_trainings(pipeline({"model": {"init": "tiny/nothing"}}))
