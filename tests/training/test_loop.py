import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from capfilt.errors import CheckpointError, DataError, TrainingError
from capfilt.models import device
from capfilt.models.blip.adapter import Blip
from capfilt.training.loop import train, train_step
from capfilt.training.recipe import load_recipe
from capfilt.training.trainer import Rank, Trainer
from capfilt.training.validate import HeldOut

pytestmark = pytest.mark.usefixtures("one_thread")

Recipes = Callable[..., Path]
Line = dict[str, Any]
SHAPE = {"vision_width": 32, "vision_layers": 1, "vision_heads": 2, "patch_size": 8, "text_width": 32, "text_layers": 1,
         "text_heads": 2, "text_mlp": 64, "max_positions": 24, "dropout": 0.0, "embed_dim": 16}  # fmt: skip
STILL = {"size": 32, "crop_scale": None, "flip": 0, "randaugment_n": 0}
TERMS = {"pretrain": ["itc", "itm", "lm"], "captioner": ["lm"], "filter": ["itc", "itm"]}


def lines(out: Path) -> list[Line]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def numbers(out: Path) -> list[Line]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in line.items() if k != "pairs_s"} for line in lines(out)]


def weights(out: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(out / "last/model.safetensors")
    return found


class KilledError(Exception):
    """A kill between two steps."""


def stop_after(step: int) -> Callable[[dict[str, float]], None]:
    def watch(line: dict[str, float]) -> None:
        if line["step"] == step:
            raise KilledError

    return watch


@pytest.mark.parametrize("kind", ["pretrain", "captioner", "filter"])
def test_the_loss_falls_and_everything_is_written(tiny_recipe: Recipes, tmp_path: Path, kind: str) -> None:
    recipe = load_recipe(tiny_recipe(kind, optim={"lr": 3e-3, "epochs": 6, "clip": 1.0}))
    assert train(recipe) == tmp_path / "run/last"
    log = lines(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(1, 37))
    assert [line["epoch"] for line in log] == [step // 6 for step in range(36)]
    name = TERMS[kind][-1] if kind != "filter" else "itc"
    assert sum(line[name] for line in log[-6:]) < 0.95 * sum(line[name] for line in log[:6])
    for line in log:
        assert line["loss"] == pytest.approx(sum(line[term] for term in TERMS[kind]))
        assert {"lr", "grad_norm", "pairs_s"} <= line.keys()
        assert ("tau" in line) == (kind != "captioner")
    assert log[0]["lr"] == 1e-6
    assert log[2]["lr"] == 3e-3
    assert list((tmp_path / "run/events").iterdir())
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step-00000032.pt", "step-00000036.pt"]
    assert json.loads((tmp_path / "run/recipe.json").read_text())["recipe"] == kind
    roles = {"captioner": {"captioner"}, "filter": {"judge", "embedder"}}
    assert Blip.load(tmp_path / "run/last").roles == roles.get(kind, {"captioner", "judge", "embedder"})


def test_kill_9_and_again_is_bit_equal_to_an_unbroken_run(tiny_recipe: Recipes, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"optim": {"epochs": 12}, "run": {"log_every": 3, "checkpoint_every": 4}}
    train(load_recipe(tiny_recipe(name="whole", **parts)))
    command = [sys.executable, "-m", "capfilt.cli", "train", str(tiny_recipe(name="killed", **parts))]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    checkpoints, until = tmp_path / "killed/checkpoints", time.monotonic() + 300
    while not (checkpoints / "step-00000008.pt").exists() and time.monotonic() < until and running.poll() is None:
        time.sleep(0.002)
    running.kill()
    told = running.communicate()[1].decode()
    assert running.returncode == -signal.SIGKILL, told
    assert not (tmp_path / "killed/last").exists()
    stood = max(int(path.stem.removeprefix("step-")) for path in checkpoints.glob("step-*.pt"))
    assert 8 <= stood < 72
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {stood} of 72" in " ".join(done.stderr.split())
    assert f"model   {tmp_path / 'killed/last'}" in done.stdout
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(tmp_path / "killed").items())


def test_a_damaged_last_checkpoint_falls_back_and_another_recipes_is_refused(
    tiny_recipe: Recipes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(load_recipe(tiny_recipe("filter", "whole")))
    path = tiny_recipe("filter", "broken")
    with pytest.raises(KilledError):
        train(load_recipe(path), watch=stop_after(9))
    with pytest.raises(CheckpointError, match=r"another recipe \(optim.lr 0.001 -> 0.002\)"):
        train(load_recipe(path, ["optim.lr=0.002"]))
    (tmp_path / "broken/checkpoints/step-00000008.pt").write_bytes(b"junk")
    train(load_recipe(path))
    assert "step-00000008.pt: damaged" in caplog.text
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tiny_recipe: Recipes, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe("captioner", optim={"epochs": 1}))
    assert train(recipe) == train(recipe)
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 7))


def test_the_callers_threads_and_random_generator_are_as_before(tiny_recipe: Recipes) -> None:
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    train(load_recipe(tiny_recipe("captioner", optim={"epochs": 1})))
    with pytest.raises(DataError):
        train(load_recipe(tiny_recipe("captioner", "gone", data={"sources": [{"path": "/gone"}]})))
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_going_on_with_other_ranks_is_said(
    tiny_recipe: Recipes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_recipe("captioner")
    with pytest.raises(KilledError):
        train(load_recipe(path), watch=stop_after(7))
    (last,) = (tmp_path / "run/checkpoints").glob("step-00000006.pt")
    saved = torch.load(last, weights_only=True)
    assert saved["ranks"] == 1
    torch.save({**saved, "ranks": 2}, last)
    with caplog.at_level(logging.WARNING):
        train(load_recipe(path))
    assert "started with 2 ranks, continuing with 1: the losses are not those of an unbroken run" in caplog.text


def test_accumulation_is_the_big_batch_for_lm(tiny_recipe: Recipes, tmp_path: Path) -> None:
    parts = {"model": {"shape": SHAPE}, "optim": {"epochs": 1, "clip": 0.5}}
    for name, accumulate in (("one", 1), ("four", 4)):
        train(load_recipe(tiny_recipe("captioner", name, **parts), [f"optim.accumulate={accumulate}"]))
    for one, four in zip(lines(tmp_path / "one"), lines(tmp_path / "four"), strict=True):
        assert four == pytest.approx(one | {"pairs_s": four["pairs_s"]}, rel=1e-4)
    whole = weights(tmp_path / "one")
    assert all(torch.allclose(t, whole[name], atol=2e-5) for name, t in weights(tmp_path / "four").items())


def test_accumulation_that_leaves_no_step_is_refused(tiny_recipe: Recipes) -> None:
    path = tiny_recipe("captioner", optim={"global_batch": 64, "accumulate": 2})
    with pytest.raises(DataError, match=r"48 samples, fewer than optim.global_batch 64"):
        train(load_recipe(path))


@pytest.mark.parametrize("kind", ["pretrain", "captioner"])
def test_a_loss_that_is_not_finite_stops_with_the_rows(tiny_recipe: Recipes, tmp_path: Path, kind: str) -> None:
    recipe = load_recipe(tiny_recipe(kind, optim={"lr": 1e30, "warmup_steps": 0}))
    with pytest.raises(TrainingError, match=r"is not finite; rows of this (batch|step): \w+-\w+-[01], .*Lower"):
        train(recipe)
    assert not (tmp_path / "run/last").exists()


def test_poisoned_weights_stop_hard_negatives_and_all(tiny_recipe: Recipes) -> None:
    trainer = Trainer(load_recipe(tiny_recipe("filter")), Rank())
    with torch.no_grad():
        trainer.objective.med.vision.norm.weight[0] = torch.inf
    with pytest.raises(TrainingError, match="the loss itc, itm is not finite"):
        train_step(trainer, trainer.loader.batches(0))


def test_validation_keeps_the_best_and_disturbs_nothing(tiny_recipe: Recipes, tmp_path: Path, tiny_pairs: Path) -> None:
    held = {"path": str(tiny_pairs), "metric": "itc_auc"}
    plain = load_recipe(tiny_recipe("filter", "plain", optim={"epochs": 3}))
    measured = load_recipe(tiny_recipe("filter", "measured", optim={"epochs": 3}, validation=held))
    train(plain)
    with pytest.raises(KilledError):
        train(measured, watch=stop_after(14))
    assert train(measured) == tmp_path / "measured/best"
    found = numbers(tmp_path / "measured")
    assert [line for line in found if "loss" in line] == numbers(tmp_path / "plain")
    values = [(line["step"], line["val_itc_auc"]) for line in found if "val_itc_auc" in line]
    assert [step for step, _ in values] == [6, 12, 18]
    assert "val_t2i_r1" in found[6]
    best, last = (load_file(tmp_path / f"measured/{name}/model.safetensors") for name in ("best", "last"))
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert same == (max(value for _, value in values[:2]) < values[2][1])


def test_a_kill_during_validation_does_not_skip_it(
    tiny_recipe: Recipes, tmp_path: Path, tiny_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"path": str(tiny_pairs), "metric": "cider"}
    recipe = load_recipe(tiny_recipe("captioner", validation=held, run={"checkpoint_every": 3}))

    def killed(self: HeldOut, blip: Blip) -> dict[str, float]:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "measure", killed)
        with pytest.raises(KilledError):
            train(recipe)
    train(recipe)
    assert [line["step"] for line in lines(tmp_path / "run") if "val_cider" in line] == [6, 12]
    assert lines(tmp_path / "run")[6]["val_bleu4"] >= 0


def test_bad_held_out_pairs_are_told_before_the_first_step(tiny_recipe: Recipes, tmp_path: Path) -> None:
    held = {"path": str(tmp_path / "gone.parquet"), "metric": "itc_auc"}
    with pytest.raises(DataError, match=r"gone\.parquet"):
        train(load_recipe(tiny_recipe("filter", validation=held)))
    assert not (tmp_path / "run").exists()


def test_a_frozen_vision_tower_stays_and_bf16_and_checkpointing_run(tiny_recipe: Recipes, tmp_path: Path) -> None:
    path = tiny_recipe(optim={"epochs": 1, "vision_lr_scale": 0})
    train(load_recipe(path))
    first = Trainer(load_recipe(path, ["out=/nowhere"]), Rank()).objective.med.state_dict()
    last = Blip.load(tmp_path / "run/last").med.state_dict()
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert moved == {"text", "vision_proj", "text_proj", "itm_head", "lm_head"}

    for name, setting in (("again", "run.checkpointing=true"), ("half", "run.precision=bf16")):
        train(load_recipe(tiny_recipe(name=name, optim={"epochs": 1, "vision_lr_scale": 0}), [setting]))
    assert [line["loss"] for line in lines(tmp_path / "again")] == pytest.approx(
        [line["loss"] for line in lines(tmp_path / "run")], rel=1e-4
    )
    losses = [line["loss"] for line in lines(tmp_path / "half")]
    assert losses == pytest.approx([line["loss"] for line in lines(tmp_path / "run")], rel=0.05)


def test_bf16_that_would_be_emulated_is_fp32_and_says_so(
    tiny_recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "has_bf16", lambda device: False)
    for name, kind in (("full", "fp32"), ("half", "bf16")):
        train(load_recipe(tiny_recipe("filter", name, optim={"epochs": 1}), [f"run.precision={kind}"]))
    assert [line["loss"] for line in lines(tmp_path / "half")] == [line["loss"] for line in lines(tmp_path / "full")]
    assert caplog.text.count("no such products") == 1


@pytest.mark.slow
def test_compiled_layers_give_the_same_losses(tiny_recipe: Recipes, tmp_path: Path) -> None:
    parts = {"model": {"shape": SHAPE}, "optim": {"epochs": 1}, "augment": STILL}
    for name, on in (("plain", False), ("compiled", True)):
        train(load_recipe(tiny_recipe("captioner", name, **parts, run={"compile": on})))
    plain, compiled = ([line["loss"] for line in lines(tmp_path / name)] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "plain").keys()


@pytest.mark.gpu
def test_on_a_gpu(tiny_recipe: Recipes, tmp_path: Path) -> None:
    train(load_recipe(tiny_recipe(run={"device": "cuda", "precision": "bf16"})))
    assert all(line["loss"] > 0 for line in lines(tmp_path / "run"))
