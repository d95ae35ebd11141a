"""Held-out numbers in the middle of a training run, by the same code as `capfilt eval`."""

from capfilt.config.decoding import Decoding
from capfilt.evaluation import evaluate_captioner, evaluate_matcher, load_pairs
from capfilt.models.blip.adapter import Blip
from capfilt.training.recipe_sections import Validation

MAX_LENGTH = 30
"""Most tokens of a caption, prompt counted, as in `capfilt eval`; COCO's protocol has 20."""


class HeldOut:
    """The held-out pairs, read once, before the first step: what is wrong with them shows then.

    Raises:
        DataError: as `load_pairs`.
    """

    def __init__(self, held: Validation, prompt: str) -> None:
        self.metric, self.every_epochs, self.prompt = held.metric, held.every_epochs, prompt
        self.pairs = load_pairs(held.path, held.text)
        self.training = load_pairs(held.train, held.text) if held.metric == "cider" and held.train else self.pairs

    def measure(self, blip: Blip) -> dict[str, float]:
        """The scalar results of the evaluation that `metric` belongs to."""
        if self.metric == "cider":
            length = min(MAX_LENGTH, blip.config.text.max_positions)
            blip.decoding = Decoding.measured(length, self.prompt)
            result = evaluate_captioner(blip, self.pairs, self.training)
        else:
            result = evaluate_matcher(blip, self.pairs, rerank_k=16)
        return {name: float(value) for name, value in result.items() if isinstance(value, int | float)}
