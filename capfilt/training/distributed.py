"""Training on a Ray cluster with Ray Train's `TorchTrainer`: one process per rank, DDP over gloo (CPU) or nccl (GPU).

Ray places the ranks and sets up `torch.distributed`. If a rank or its node dies, the run starts again from its last
checkpoint. An error that the user must fix (a `CapfiltError`: a NaN loss, a damaged file) is raised at once. All nodes
must see the data and the folder `out`, which holds the checkpoints. capfilt must be installed on every node.
"""

import logging
import os
from pathlib import Path
from typing import Any

from capfilt.errors import CapfiltError, ConfigError, TrainingError
from capfilt.training.recipe import parse_recipe
from capfilt.training.recipe_sections import Recipe

logger = logging.getLogger(__name__)

TIMEOUT = 6 * 3600
"""Seconds that a rank waits for the others. They wait while rank 0 validates, which may take longer than torch's half
hour. Ray notices a dead rank at once."""


def _rank_main(config: dict[str, str]) -> None:
    """Run the training loop on one rank."""
    import ray.train
    import ray.train.torch

    from capfilt.training.loop import train
    from capfilt.training.trainer import Rank

    recipe, context = parse_recipe(config["recipe"]), ray.train.get_context()
    _log_to_driver(context.get_world_rank() == 0)
    device = "cpu" if recipe.run.device == "cpu" else str(ray.train.torch.get_device())
    train(recipe, Rank(context.get_world_rank(), context.get_world_size(), device))


def _log_to_driver(first: bool) -> None:
    """Send capfilt's messages to the driver's terminal; ranks other than the first send only warnings."""
    ours = logging.getLogger("capfilt")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO if first else logging.WARNING)


def train_on_ray(recipe: Recipe, max_failures: int = 3) -> Path:
    """Train on `recipe.run.ranks` ranks, in the cluster at RAY_ADDRESS or in one that this machine starts and stops.

    Args:
        recipe: as `load_recipe` returns it.
        max_failures: how often the run is started again after a rank has died.

    Returns:
        The model's folder, as `train` does.

    Raises:
        ConfigError: Ray is not installed, or the machine has too few GPUs.
        CapfiltError: raised by `train` on a rank.
        TrainingError: ranks died more than `max_failures` times.
    """
    try:
        import ray
        import ray.train.torch
    except ImportError as error:
        raise ConfigError(f"run.ranks > 1 needs Ray: pip install 'capfilt[ray]' ({error})") from error
    from capfilt.training.loop import model_folder

    started = not ray.is_initialized()
    if started:
        _connect(ray, recipe.run.ranks)
    try:
        recipe = with_device(ray, recipe, joined=not started or "RAY_ADDRESS" in os.environ)
        for left in reversed(range(max_failures + 1)):
            if _attempt(recipe, left):
                break
    finally:
        if started:
            ray.shutdown()
    return model_folder(recipe)


def _connect(ray: Any, ranks: int) -> None:
    if "RAY_ADDRESS" in os.environ:
        ray.init(logging_level="warning")
        return
    ray.init(
        address="local",  # otherwise Ray joins any cluster that runs on this machine
        num_cpus=max(ranks, os.cpu_count() or 1),
        include_dashboard=False,
        logging_config=ray.LoggingConfig(log_level="ERROR"),  # Ray Train asks the absent dashboard every second
    )


def with_device(ray: Any, recipe: Recipe, joined: bool) -> Recipe:
    """Choose one `run.device` for all ranks.

    Args:
        ray: the module, connected to a cluster.
        recipe: what to train.
        joined: whether the cluster was there before; it may then grow.

    Raises:
        ConfigError: `cuda`, and a cluster that cannot grow has fewer GPUs than ranks.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    device = recipe.run.device if recipe.run.device != "auto" else "cuda" if gpus else "cpu"
    if device == "cuda" and gpus < recipe.run.ranks and not joined:  # a joined cluster may grow
        raise ConfigError(f"run.ranks: {recipe.run.ranks} ranks on {gpus} GPUs; lower it, or set run.device: cpu")
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"device": device})})


def _attempt(recipe: Recipe, left: int) -> bool:
    """Train until the end (return True) or until ranks die (return False if `left` more attempts may follow)."""
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = recipe.run.device == "cuda"
    trainer = TorchTrainer(
        _rank_main,
        train_loop_config={"recipe": recipe.model_dump_json()},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=TIMEOUT),
        scaling_config=ScalingConfig(num_workers=recipe.run.ranks, use_gpu=gpu),
        run_config=RunConfig(storage_path=recipe.out, name="ray"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failures = list(getattr(error, "worker_failures", {}).values())
        for failure in failures:
            cause = getattr(failure, "cause", failure)
            if isinstance(cause, CapfiltError):
                raise cause from None
        reason = str(error).strip().splitlines()[-1]
        if not left:
            raise TrainingError(f"training on Ray failed: {reason}") from error
        logger.warning("training on Ray failed (%s); continuing from the last checkpoint, %d more tries", reason, left)
        return False
    return True
