"""Measure held-out pairs during a training run, with the code of `capfilt eval`."""

from typing import cast

from capfilt.evaluation import evaluate_captioner, evaluate_judge, load_pairs
from capfilt.models.protocols import EvaluatedCaptioner, RetrievalJudge, System
from capfilt.training.recipe_sections import Validation

RERANK = 16
"""Candidates per query that ITM re-ranks."""


class HeldOut:
    """The held-out pairs, read before the first step so that an error in them appears then.

    Raises:
        DataError: as `load_pairs`.
    """

    def __init__(self, held: Validation, prompt: str) -> None:
        """Read the pairs. `prompt`: text that the captioner's captions start with."""
        self.metric, self.every_epochs, self.prompt = held.metric, held.every_epochs, prompt
        self.pairs = load_pairs(held.path, held.text)
        self.training = load_pairs(held.train, held.text) if held.metric == "cider" and held.train else self.pairs

    def measure(self, system: System) -> dict[str, float]:
        """Run the evaluation that `metric` belongs to: of a captioner for cider, else of a judge.

        Returns:
            The scalar results by name.

        Raises:
            ConfigError: the system does not have the role.
        """
        if self.metric == "cider":
            captioner = cast(EvaluatedCaptioner, system)
            captioner.decoding = captioner.measured(prompt=self.prompt)
            result = evaluate_captioner(captioner, self.pairs, self.training)
        else:
            result = evaluate_judge(cast(RetrievalJudge, system), self.pairs, rerank_k=RERANK)
        return {name: float(value) for name, value in result.items() if isinstance(value, int | float)}
