"""What a round's models can do on held-out pairs: evaluate.json, metric -> value, `<metric>_ci` its 95 % interval."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from capfilt.config.rounds import Evaluate
from capfilt.evaluation import evaluate_captioner, evaluate_judge, load_pairs
from capfilt.evaluation.pairs import Pairs
from capfilt.models.protocols import EvaluatedCaptioner, RetrievalJudge, System
from capfilt.models.registry import load_system
from capfilt.rounds.training_set import TrainingSet
from capfilt.rounds.trainings import Training

RERANK = 16
"""Candidates per query that ITM re-ranks."""
JUDGES = {"pretrain": "pretrained", "finetune_filter": "filter"}


def measure(part: Evaluate, training: TrainingSet, trained: Mapping[str, Training]) -> dict[str, Any]:
    """`pretrained_*` and `filter_*` as `evaluate_judge` names them, `captioner_*` as `evaluate_captioner`.

    Only numbers and intervals. Raises DataError for held-out pairs that cannot be read.
    """
    pairs = _held_out(part, training)
    found: dict[str, Any] = {"images": len(pairs.images), "texts": len(pairs.texts)}
    for stage, name in JUDGES.items():
        judge = cast(RetrievalJudge, _load(trained[stage].model, "judge"))
        found |= _named(name, evaluate_judge(judge, pairs, rerank_k=RERANK))
    tuned = trained["finetune_captioner"]
    captioner = cast(EvaluatedCaptioner, _load(tuned.model, "captioner"))
    captioner.decoding = captioner.measured(prompt=tuned.recipe.objective.caption_prompt)
    return found | _named("captioner", evaluate_captioner(captioner, pairs, load_pairs(training.pairs, "human")))


def _held_out(part: Evaluate, training: TrainingSet) -> Pairs:
    if part.pairs is None:
        return load_pairs(training.heldout, "human", image_id="uid")
    return load_pairs(part.pairs, part.text)


def _load(folder: Path, role: str) -> System:
    system = load_system(folder, device=None)
    system.card.require(role)
    return system


def _named(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if isinstance(value, int | float) or key.endswith("_ci")}
    return {f"{name}_{key}": list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
