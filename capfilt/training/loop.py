"""The training loop: from the recipe to the saved model, on one rank of many.

`train` runs it in this process; `distributed.py` runs it on each rank of a Ray cluster. A run that is killed at any
point and started again gives, from the last checkpoint on, the losses of an unbroken run, bit for bit on a CPU.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capfilt.models import device as devices
from capfilt.training.batch import TrainBatch
from capfilt.training.finite import check_gradient, check_losses
from capfilt.training.log import Log
from capfilt.training.recipe_sections import Recipe
from capfilt.training.schedule import learning_rate
from capfilt.training.state import noise_seed
from capfilt.training.trainer import Rank, Trainer

logger = logging.getLogger(__name__)


def train(recipe: Recipe, rank: Rank | None = None, watch: Callable[[dict[str, float]], None] | None = None) -> Path:
    """Train to the end, from the last checkpoint if there is one.

    Torch's number of threads and its random generators are afterwards as they were before.

    Args:
        recipe: as `load_recipe` returns it.
        rank: this process among several; None: the only one.
        watch: called with each logged line (for tests and sweeps).

    Returns:
        The model's folder (see `model_folder`).

    Raises:
        ConfigError, DataError, CheckpointError: before the first step.
        TrainingError: a loss is not finite.
    """
    rank = rank or Rank()
    with _process_state(devices.pick_device(rank.device or recipe.run.device), recipe.run.threads):
        trainer = Trainer(recipe, rank)
        trainer.resume()
        if rank.first:
            _start_folder(trainer)
        _run(trainer, watch)
        if rank.first:
            trainer.objective.save(trainer.out / "last")
    return model_folder(recipe)


def model_folder(recipe: Recipe) -> Path:
    """The folder of a finished run's model: `best` if there are held-out pairs, else `last`."""
    best = Path(recipe.out) / "best"
    return best if recipe.validation is not None and best.is_dir() else Path(recipe.out) / "last"


@contextlib.contextmanager
def _process_state(device: torch.device, threads: int | None) -> Iterator[None]:
    """Set the number of threads; restore it and the random generators at the end."""
    before = torch.get_num_threads()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            if threads:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)


def _start_folder(trainer: Trainer) -> None:
    if trainer.recipe.run.precision == "bf16" and not devices.has_bf16(trainer.device):
        logger.warning("precision bf16: this processor has no such products; training uses fp32")
    trainer.out.mkdir(parents=True, exist_ok=True)
    (trainer.out / "recipe.json").write_text(trainer.recipe.model_dump_json(indent=2) + "\n")


def _run(trainer: Trainer, watch: Callable[[dict[str, float]], None] | None) -> None:
    done, shown = trainer.position.step, ("loss", *trainer.objective.terms)
    with Log(trainer.out, trainer.total, done, trainer.rank.first, watch, trainer.window, shown) as log:
        for epoch in range(done // trainer.steps_per_epoch, trainer.recipe.optim.epochs):
            _epoch(trainer, epoch, log)
            _validate(trainer, epoch, log)
            trainer.checkpoint()


def _epoch(trainer: Trainer, epoch: int, log: Log) -> None:
    """Run the rest of the epoch. The caller writes its last checkpoint, after validation, so that none is skipped."""
    recipe, position = trainer.recipe, trainer.position
    start = position.step - epoch * trainer.steps_per_epoch
    batches = trainer.loader.batches(epoch, start * recipe.optim.accumulate)
    for left in reversed(range(trainer.steps_per_epoch - start)):
        terms = train_step(trainer, batches)
        position.step += 1
        if trainer.monitor is not None:
            trainer.monitor.update(position.step, terms)
        log.step(position.step, epoch, terms, recipe.optim.global_batch, every=recipe.run.log_every)
        if left and position.step % recipe.run.checkpoint_every == 0:
            trainer.checkpoint()


def train_step(trainer: Trainer, batches: Iterator[TrainBatch]) -> dict[str, float]:
    """Do one optimiser step over `accumulate` forward passes.

    Returns:
        The mean of each loss term, their sum `loss`, `lr`, `grad_norm`, and the objective's metrics.
    """
    objective, optim, step = trainer.objective, trainer.recipe.optim, trainer.position.step
    objective.start_step(step, trainer.steps_per_epoch)
    lr = learning_rate(optim, step, trainer.steps_per_epoch)
    for group in trainer.optimizer.param_groups:
        group["lr"] = lr * group["scale"]
    sums, uids = dict[str, float](), list[str]()
    for number in range(optim.accumulate):
        batch = next(batches)
        uids += batch.uids
        for name, value in _forward_backward(trainer, batch, number).items():
            sums[name] = sums.get(name, 0.0) + value / optim.accumulate
    norm = _clip(trainer, uids)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return {**sums, "loss": sum(sums.values()), "lr": lr, "grad_norm": norm, **objective.metrics()}


def _forward_backward(trainer: Trainer, batch: TrainBatch, number: int) -> dict[str, float]:
    """Compute the gradients of forward pass `number` of a step. Only the last pass exchanges gradients.

    Returns:
        The terms as means over the ranks.
    """
    recipe, rank, device = trainer.recipe, trainer.rank, trainer.device
    torch.manual_seed(noise_seed(recipe.run.seed, trainer.position.step, number, rank.number))
    batch = TrainBatch(batch.pixels.to(device), batch.texts, batch.image_ids.to(device), batch.uids)
    last = number == recipe.optim.accumulate - 1
    with contextlib.nullcontext() if last or rank.world == 1 else trainer.step_module.no_sync():
        with devices.bf16_autocast(device, recipe.run.precision == "bf16"):
            terms: dict[str, Tensor] = trainer.step_module(batch)
        means = _means(terms, rank.world)
        check_losses(means, terms, batch.uids, rank.world)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        (loss / recipe.optim.accumulate).backward()  # type: ignore[no-untyped-call]
    return means


def _means(terms: dict[str, Tensor], world: int) -> dict[str, float]:
    values = torch.stack([term.detach().float() for term in terms.values()])
    if world > 1:
        dist.all_reduce(values)
        values /= world
    return dict(zip(terms, values.tolist(), strict=True))


def _clip(trainer: Trainer, uids: list[str]) -> float:
    """Clip the gradient if the recipe says so. Return its norm before clipping."""
    parameters = [p for p in trainer.objective.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    check_gradient(float(norm), uids)
    if trainer.recipe.optim.clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, trainer.recipe.optim.clip, norm)
    return float(norm)


def _validate(trainer: Trainer, epoch: int, log: Log) -> None:
    """Measure on rank 0, and keep the model if it is the best so far."""
    held, position = trainer.held, trainer.position
    if held is None or (epoch + 1) % held.every_epochs:
        return
    values = held.measure(trainer.objective.system())
    log.write({"step": position.step, "epoch": epoch + 1, **{f"val_{k}": v for k, v in values.items()}})
    if position.best is None or values[held.metric] > position.best:
        position.best = values[held.metric]
        trainer.objective.save(trainer.out / "best")
    trainer.objective.train()
