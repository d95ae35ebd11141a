"""BLIP's losses on a GPU that is not there: no tensor is left on the CPU."""

from typing import Any

import torch

from capfilt.training.batch import TrainBatch
from capfilt.training.objectives.blip.objective import BlipObjective
from capfilt.training.objectives.blip.settings import BlipSettings
from tests.models.fake_cuda import CUDA, move, rehearsal, value


def test_losses(tiny_med: Any) -> None:
    """Two steps, the second with keys in the queue. The backward pass cannot be rehearsed."""
    objective = BlipObjective(*tiny_med(), BlipSettings(itc=1, itm=1, lm=1, queue_size=6, alpha=0.4))
    with rehearsal() as mode:
        move(objective, mode)
        pixels, ids = mode.fake(torch.randn(3, 3, 32, 32)), mode.fake(torch.tensor([1, 2, 3]))
        batch = TrainBatch(pixels, ["a red disc", "a plain wall", "a green bar"], ids, ["u", "v", "w"])
        for step in range(2):
            objective.start_step(step, 2)
            terms = objective(batch)
            assert set(terms) == {"itc", "itm", "lm"}
            assert all(term.device == CUDA and value(term).isfinite() for term in terms.values())
