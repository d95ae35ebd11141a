"""Measure a round's models on held-out pairs. evaluate.json: metric -> value, `<metric>_ci` -> its 95 % interval."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from capfilt.config.rounds import Evaluate
from capfilt.evaluation import evaluate_captioner, evaluate_judge, load_pairs
from capfilt.evaluation.columns import Columns
from capfilt.evaluation.pairs import Pairs
from capfilt.models.protocols import EvaluatedCaptioner, RetrievalJudge, System
from capfilt.models.registry import load_system
from capfilt.rounds.training_set import TrainingSet
from capfilt.rounds.trainings import Training
from capfilt.store.parquet import safe_schema

RERANK = 16
"""Candidates per query that ITM re-ranks."""
JUDGES = {"pretrain": "pretrained", "finetune_filter": "filter"}
"""Stage -> name of its model, which is measured as a judge."""


def check_held_out(settings: Evaluate | None) -> None:
    """Check the file of `evaluate.pairs` before anything runs. Raises DataError: no such file, or a missing column."""
    if settings is not None and settings.pairs is not None:
        texts = [settings.text] if isinstance(settings.text, str) else settings.text
        Columns("image", texts, None).check(Path(settings.pairs), safe_schema(settings.pairs))


def measure(settings: Evaluate, training_set: TrainingSet, trained: Mapping[str, Training]) -> dict[str, Any]:
    """Evaluate the pre-trained model and the filter as judges, and the captioner.

    Args:
        settings: which pairs to measure on.
        training_set: the training set of the round, with its held-out pairs.
        trained: stage -> finished training.

    Returns:
        Numbers and intervals only: `pretrained_*` and `filter_*` as `evaluate_judge` names them, `captioner_*` as
        `evaluate_captioner` does; `images` and `texts`, the numbers of held-out images and texts.

    Raises:
        DataError: held-out pairs that cannot be read.
    """
    pairs = _held_out(settings, training_set)
    found: dict[str, Any] = {"images": len(pairs.images), "texts": len(pairs.texts)}
    for stage, name in JUDGES.items():
        judge = cast(RetrievalJudge, _load(trained[stage].model, "judge"))
        found |= _named(name, evaluate_judge(judge, pairs, rerank_k=RERANK))
    tuned = trained["finetune_captioner"]
    captioner = cast(EvaluatedCaptioner, _load(tuned.model, "captioner"))
    captioner.decoding = captioner.measured(prompt=tuned.recipe.objective.caption_prompt)
    return found | _named("captioner", evaluate_captioner(captioner, pairs, load_pairs(training_set.pairs, "human")))


def _held_out(settings: Evaluate, training_set: TrainingSet) -> Pairs:
    if settings.pairs is None:
        return load_pairs(training_set.heldout, "human", image_id="uid")
    return load_pairs(settings.pairs, settings.text)


def _load(folder: Path, role: str) -> System:
    system = load_system(folder, device=None)
    system.card.require(role)
    return system


def _named(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if isinstance(value, int | float) or key.endswith("_ci")}
    return {f"{name}_{key}": list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
