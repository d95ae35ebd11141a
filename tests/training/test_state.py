from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from capfilt.errors import CheckpointError
from capfilt.training import state
from capfilt.training.recipe import load_recipe
from capfilt.training.recipe_sections import Recipe


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Recipe:
    return load_recipe(tiny_recipe())


def save(folder: Path, recipe: Recipe, *steps: int) -> None:
    for step in steps:
        state.write(folder, {"recipe": state.fingerprint(recipe), "weights": torch.tensor(step)}, step)


def test_the_last_two_are_kept_and_leftovers_removed(tmp_path: Path, recipe: Recipe) -> None:
    assert state.read_last(tmp_path / "none", recipe) is None
    (tmp_path / "step-00000001.part").write_bytes(b"a killed run's")
    save(tmp_path, recipe, 5, 10, 999_999_999)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000010.pt", "step-999999999.pt"]


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_one_falls_back_to_the_one_before(
    tmp_path: Path, recipe: Recipe, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, recipe, 5, 10)
    last = tmp_path / "step-00000010.pt"
    last.write_bytes(last.read_bytes()[:-50] if damage is None else damage)
    found = state.read_last(tmp_path, recipe)
    assert found is not None
    assert int(found["weights"]) == 5
    assert "step-00000010.pt: damaged" in caplog.text
    (tmp_path / "step-00000005.pt").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints can be read; delete it to start again"):
        state.read_last(tmp_path, recipe)


def test_another_recipe_is_refused_by_naming_what_changed(
    tmp_path: Path, recipe: Recipe, tiny_recipe: Callable[..., Path]
) -> None:
    save(tmp_path, recipe, 5)
    for setting, told in {
        "optim.lr=0.002": "optim.lr 0.001 -> 0.002",
        "run.seed=1": "run.seed 42 -> 1",
        "run.precision=bf16": "run.precision 'fp32' -> 'bf16'",
        "data.sources.0.weight=2": "data.sources.0.weight 1.0 -> 2.0",
    }.items():
        with pytest.raises(CheckpointError, match="written with another recipe") as caught:
            state.read_last(tmp_path, load_recipe(tiny_recipe(), [setting]))
        assert told in str(caught.value)
    free = ["out=elsewhere", "run.ranks=2", "run.log_every=7", "run.threads=2", "data.workers=1", "run.compile=true"]
    assert state.read_last(tmp_path, load_recipe(tiny_recipe(), free)) is not None


def test_noise_seeds_differ_by_each_of_their_parts_and_never_change() -> None:
    seeds = {state.noise_seed(*key) for key in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))}
    assert len(seeds) == 5
    assert state.noise_seed(42, 7, 1, 3) == 12782653860680129740
    torch.manual_seed(2**64 - 1)
