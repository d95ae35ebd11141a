"""Rows of the bootstrap experiment, and the recipe that all of them share.

Chosen on a tenth of the training file (`--tune`), see the notes in `results/bootstrap.md`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.bootstrap_judge import BEAM, NUCLEUS
from benchmarks.bootstrap_model import Shape
from capfilt.training.objectives.blip.settings import BlipSettings

ROWS = (
    "raw", "captioner+filter", "filter", "captioner", "control", "human",
    "one-caption", "beam", "shared", "continued", "two-rounds", "five-captions", "ensemble",
)  # fmt: skip
"""In the order in which they are computed; the paper's Tables 1 and 12, human pairs alone, Tables 2, 4 and 13, then its
future work."""

OBJECTIVE = BlipSettings(queue_size=1024, momentum=0.98, hard_floor=1 / 64, itm_alpha=0.5, positives=True)


@dataclass(frozen=True)
class Recipe:
    """Settings that are the same for every row."""

    shape: Shape = field(default_factory=Shape)
    steps: int = 300
    batch: int = 64
    lr: float = 1.5e-3
    every: int = 30
    """ITM is computed in every `every`-th step, LM in every `lm_every`-th."""
    lm_every: int = 12
    caption_steps: int = 150
    caption_lr: float = 1.5e-3
    caption_slow: float = 0.4
    caption_tokens: int = 20
    """Tokens of a human text from which the captioner learns: as many as it generates."""
    filter_steps: int = 60
    filter_lr: float = 5e-4
    filter_every: int = 10
    captions: int = 3
    """Captions per image."""
    web_threshold: float = 0.5
    """Threshold of the filter's cosine."""
    caption_threshold: float = 0.5
    objective: BlipSettings = field(default_factory=lambda: OBJECTIVE)

    def fingerprint(self, tune: bool, uids: Sequence[str]) -> str:
        """Return the hash of everything that the artefacts depend on, except setting and seed."""
        recipe = asdict(self) | {"objective": self.objective.model_dump()}
        decodings = [NUCLEUS.model_dump(), BEAM.model_dump()]
        inputs = json.dumps([recipe, decodings, tune, list(uids)], sort_keys=True)
        return hashlib.sha256(inputs.encode()).hexdigest()[:12]
