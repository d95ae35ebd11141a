"""One of two gloo ranks without Ray: `python two_ranks.py RECIPE RANK STORE [poison]`; prints what it saw as JSON."""

import hashlib
import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from capfilt.errors import TrainingError
from capfilt.training.batch import TrainBatch
from capfilt.training.loop import train_step
from capfilt.training.recipe import load_recipe
from capfilt.training.trainer import Rank, Trainer


def digest(state: dict[str, torch.Tensor]) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()


def spoil(module: torch.nn.Module, args: tuple[TrainBatch]) -> None:
    args[0].pixels.fill_(torch.nan)


def main(path: str, rank: int, store: str, poison: bool) -> dict[str, Any]:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    trainer = Trainer(load_recipe(path), Rank(rank, 2))
    batches = trainer.loader.batches(0)
    if poison and rank == 1:
        trainer.objective.register_forward_pre_hook(spoil)
    kept = list(batches)
    steps = iter(kept)
    try:
        for _ in range(trainer.steps_per_epoch):
            train_step(trainer, steps)
            trainer.position.step += 1
    except TrainingError as error:
        return {"error": str(error), "uids": kept[0].uids}
    uids = [uid for batch in kept for uid in batch.uids]
    objective = trainer.objective
    queue = objective.momentum.id_queue.tolist() if objective.contrastive else []
    ids = [i for batch in kept for i in batch.image_ids.tolist()]
    return {"digest": digest(objective.state_dict()), "queue": queue, "ids": ids, "uids": uids}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], "poison" in sys.argv)), flush=True)
    dist.barrier()
    # Without the interpreter's end: with the other rank gone first, gloo's threads abort it there now and then.
    os._exit(0)
