"""Held-out numbers in the middle of a training run, by the same code as `capfilt eval`."""

from capfilt.evaluation import evaluate_captioner, evaluate_judge, load_pairs
from capfilt.models.blip.adapter import Blip
from capfilt.training.recipe_sections import Validation


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
            blip.decoding = blip.measured(prompt=self.prompt)
            result = evaluate_captioner(blip, self.pairs, self.training)
        else:
            result = evaluate_judge(blip, self.pairs, rerank_k=16)
        return {name: float(value) for name, value in result.items() if isinstance(value, int | float)}
