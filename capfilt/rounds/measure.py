"""What a round's models can do on held-out pairs: evaluate.json, metric -> value, `<metric>_ci` its 95 % interval."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capfilt.config.decoding import Decoding
from capfilt.config.rounds import Evaluate
from capfilt.evaluation import evaluate_captioner, evaluate_matcher, load_pairs
from capfilt.evaluation.pairs import Pairs
from capfilt.models.blip.adapter import Blip
from capfilt.models.device import pick_device
from capfilt.rounds.training_set import TrainingSet
from capfilt.rounds.trainings import Training

MAX_LENGTH = 30
"""Most tokens of a caption, prompt counted, as in `capfilt eval`."""
RERANK = 16
MATCHERS = {"pretrain": "pretrained", "finetune_filter": "filter"}


def measure(part: Evaluate, training: TrainingSet, trained: Mapping[str, Training]) -> dict[str, Any]:
    """`pretrained_*` and `filter_*` as `evaluate_matcher` names them, `captioner_*` as `evaluate_captioner`.

    Only numbers and intervals. Raises DataError for held-out pairs that cannot be read.
    """
    pairs = _held_out(part, training)
    found: dict[str, Any] = {"images": len(pairs.images), "texts": len(pairs.texts)}
    for stage, name in MATCHERS.items():
        found |= _named(name, evaluate_matcher(_load(trained[stage].model), pairs, rerank_k=RERANK))
    tuned = trained["finetune_captioner"]
    captioner = _load(tuned.model)
    length = min(MAX_LENGTH, captioner.config.text.max_positions)
    captioner.decoding = Decoding.measured(length, tuned.recipe.objective.prompt)
    return found | _named("captioner", evaluate_captioner(captioner, pairs, load_pairs(training.pairs, "human")))


def _held_out(part: Evaluate, training: TrainingSet) -> Pairs:
    if part.pairs is None:
        return load_pairs(training.heldout, "human", image_id="uid")
    return load_pairs(part.pairs, part.text)


def _load(folder: Path) -> Blip:
    return Blip.load(folder, device=str(pick_device(None)))


def _named(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if isinstance(value, int | float) or key.endswith("_ci")}
    return {f"{name}_{key}": list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
