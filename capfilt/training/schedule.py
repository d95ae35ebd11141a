"""Learning rates as functions of the optimiser step (paper appendix A; salesforce/BLIP utils.py)."""

import math

from capfilt.training.recipe_sections import OptimSection


def learning_rate(optim: OptimSection, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimiser step `step` (from 0), without the factor of the vision tower.

    Warm-up is linear from `warmup_lr` at step 0 to `lr` at step `warmup_steps`. Then `cosine` falls with every step (in
    the official code once per epoch) and would reach `min_lr` at step epochs * steps_per_epoch; `step` is
    lr * decay_rate^epoch, at least `min_lr`.
    """
    if step < optim.warmup_steps:
        return optim.warmup_lr + (optim.lr - optim.warmup_lr) * step / optim.warmup_steps
    if optim.schedule == "step":
        return max(optim.min_lr, optim.lr * optim.decay_rate ** (step // steps_per_epoch))
    total = max(1, optim.epochs * steps_per_epoch - optim.warmup_steps)
    done = (step - optim.warmup_steps) / total
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
