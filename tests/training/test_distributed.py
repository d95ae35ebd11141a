import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from capfilt.errors import ConfigError, DataError, TrainingError
from capfilt.training.distributed import train_on_ray, with_device
from capfilt.training.loop import train
from capfilt.training.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

Recipes = Callable[..., Path]
SHAPE = {"vision_width": 32, "vision_layers": 1, "vision_heads": 2, "patch_size": 8, "text_width": 32, "text_layers": 1,
         "text_heads": 2, "text_mlp": 64, "max_positions": 24, "dropout": 0.0, "embed_dim": 16}  # fmt: skip


def numbers(out: Path) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "pairs_s"} for line in parsed]


def two_ranks(recipe: Path, store: Path, *more: str) -> list[dict[str, Any]]:
    """What two processes that form a gloo group say."""
    script = str(Path(__file__).with_name("two_ranks.py"))
    commands = [[sys.executable, script, str(recipe), str(rank), str(store), *more] for rank in (0, 1)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    found = []
    for process in running:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        found.append(json.loads(out.splitlines()[-1]))
    return found


def test_ranks_hold_the_same_weights_copies_and_queue(tiny_recipe: Recipes, tmp_path: Path) -> None:
    parts = {"optim": {"accumulate": 2, "epochs": 1}, "run": {"ranks": 2}, "objective": {"queue_size": 48}}
    first, second = two_ranks(tiny_recipe(**parts), tmp_path / "store")
    assert first["digest"] == second["digest"]
    pairs = [first["ids"][i : i + 2] + second["ids"][i : i + 2] for i in range(0, 24, 2)]  # passes of 2 on each rank
    assert first["queue"] == [i for both in pairs for i in both]
    assert not set(first["uids"]) & set(second["uids"])


def test_a_nan_on_one_rank_stops_both_and_names_its_rows(tiny_recipe: Recipes, tmp_path: Path) -> None:
    first, second = two_ranks(tiny_recipe(run={"ranks": 2}), tmp_path / "store", "poison")
    assert first["error"] == second["error"]
    assert f"rows of this batch: {', '.join(second['uids'])}." in first["error"]


@pytest.mark.usefixtures("connected_ray")
def test_two_ranks_on_ray_learn_what_one_process_learns(tiny_recipe: Recipes, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"model": {"shape": SHAPE}, "optim": {"epochs": 1, "clip": 0.5}}
    train(load_recipe(tiny_recipe("captioner", "one", **parts)))
    two = load_recipe(tiny_recipe("captioner", "two", **parts, run={"ranks": 2}), ["data.workers=1"])
    assert train_on_ray(two) == tmp_path / "two/last"
    for one, other in zip(numbers(tmp_path / "one"), numbers(tmp_path / "two"), strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    one, other = (load_file(tmp_path / f"{name}/last/model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(tensor, other[name], atol=2e-5) for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.usefixtures("connected_ray")
def test_a_killed_rank_is_started_again_and_the_run_is_bit_equal(tiny_recipe: Recipes, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"optim": {"epochs": 12}, "run": {"ranks": 2, "log_every": 3}}
    train_on_ray(load_recipe(tiny_recipe(name="whole", **parts)))
    killer = Killer(tmp_path / "killed/checkpoints/step-00000008.pt")
    killer.start()
    train_on_ray(load_recipe(tiny_recipe(name="killed", **parts)))
    killer.join()
    assert killer.killed
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


class Killer(threading.Thread):
    """Kills a Ray Train worker among this process's descendants once a file is there."""

    def __init__(self, sign: Path) -> None:
        super().__init__(daemon=True)
        self.sign, self.killed = sign, False

    def run(self) -> None:
        until = time.monotonic() + 300
        while not self.sign.exists() and time.monotonic() < until:
            time.sleep(0.002)
        for process in descendants(os.getpid()):
            if b"RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)
                self.killed = True
                return


def descendants(parent: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, frontier = [], {parent}
    while frontier:
        frontier = {child for child, above in parents.items() if above in frontier}
        found += sorted(frontier)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("connected_ray")
def test_what_the_user_must_mend_is_raised_at_once_as_it_is(tiny_recipe: Recipes, tmp_path: Path) -> None:
    gone = load_recipe(tiny_recipe(run={"ranks": 2}), [f"data.sources.0.path={tmp_path / 'gone.parquet'}"])
    with pytest.raises(DataError, match=r"gone\.parquet"):
        train_on_ray(gone)
    wild = load_recipe(tiny_recipe(name="wild", optim={"lr": 1e30, "warmup_steps": 0}, run={"ranks": 2}))
    with pytest.raises(TrainingError, match="is not finite; rows of this"):
        train_on_ray(wild)


def test_without_ray_or_gpus_the_error_says_what_to_do(tiny_recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(tiny_recipe(run={"ranks": 2, "device": "cuda"}))

    class Empty:
        @staticmethod
        def cluster_resources() -> dict[str, float]:
            return {"CPU": 2.0}

    with pytest.raises(ConfigError, match=r"run\.ranks: 2 ranks on 0 GPUs"):
        with_device(Empty, recipe, joined=False)
    assert with_device(Empty, recipe, joined=True).run.device == "cuda"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'capfilt\[ray\]'"):
        train_on_ray(recipe)
