"""Two rounds through the command line: what is there at the end, what a killed one does, what is never trained on."""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.cli import main
from capfilt.models.blip.adapter import Blip
from capfilt.models.digest import weights_digest
from tests.command_line import finish, start, wait_for

Made = Callable[[Path], dict[str, bytes]]


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_each_round_captions_with_the_models_of_the_one_before(loop: Path) -> None:
    facts = json.loads((loop / "loop.json").read_text())
    assert [one["round"] for one in facts["rounds"]] == [1, 2]
    first, second = (json.loads((loop / f"round-{k}/run.json").read_text()) for k in (1, 2))
    assert second["digests"]["caption"] == weights_digest(str(loop / "round-1/models/captioner"))
    assert second["digests"]["score"] == weights_digest(str(loop / "round-1/models/filter"))
    assert first["fingerprints"]["ingest"] == second["fingerprints"]["ingest"]
    assert (loop / "round-2/pairs").resolve() == loop / "pairs"
    ledgers = {k: next(loop.glob(f"round-{k}/candidates-*/*.parquet")) for k in (1, 2)}
    rounds = {k: pq.read_table(path)["round"].unique().to_pylist() for k, path in ledgers.items()}
    assert rounds == {1: [1], 2: [2]}


def test_the_models_open_here_and_in_transformers(loop: Path) -> None:
    for name in ("pretrained", "captioner", "filter"):
        folder = loop / "round-2/models" / name
        Blip.load(folder)
        card = (folder / "README.md").read_text()
        assert weights_digest(str(folder)) in card
        assert "pairs.parquet sha256" in card
        assert str(loop) not in card
    BlipForConditionalGeneration.from_pretrained(loop / "round-2/models/captioner")
    BlipForImageTextRetrieval.from_pretrained(loop / "round-2/models/filter")


def test_held_out_images_are_in_no_training_set(loop: Path) -> None:
    held = []
    for number in (1, 2):
        folder = next(loop.glob(f"round-{number}/training-*"))
        pairs, heldout = (pq.read_table(folder / f"{name}.parquet") for name in ("pairs", "heldout"))
        digests = [
            {hashlib.sha256(image["bytes"]).hexdigest() for image in part["image"].to_pylist()}
            for part in (pairs, heldout)
        ]
        assert digests[1]
        assert not digests[0] & digests[1]
        held.append(digests[1])
    assert held[0] == held[1]


def test_the_same_command_again_does_nothing_again(loop_file: Path, loop: Path) -> None:
    before = stamps(loop)
    assert main(["run", str(loop_file), "--local", "--out", str(loop)]) == 0
    assert stamps(loop) == before


def test_killed_in_training_and_captioning_it_continues_to_the_same_bytes(
    loop_file: Path, loop: Path, made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "loop"
    for at in ("round-1/pretrain-*/checkpoints/*", "round-2/caption-*/00000.parquet"):
        process = start("run", loop_file, "--local", "--out", out)
        wait_for(lambda at=at: any(out.glob(at)), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (out / "round-2/evaluate.json").exists()
    assert main(["run", str(loop_file), "--local", "--out", str(out)]) == 0
    assert made(out) == made(loop)


def test_reading_commands_know_a_loop(loop_file: Path, loop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(loop)]) == 0
    assert main(["report", str(loop)]) == 0
    assert main(["inspect", str(loop / "round-1")]) == 0
    assert main(["plan", str(loop_file), "--out", str(loop), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("\n{") :])["rounds"][1]["finetune_filter"] == "there"
    assert main(["inspect", str(loop)]) == 2
    assert "round-1" in capsys.readouterr().err


@pytest.mark.slow
def test_several_ranks_train_through_ray(loop_file: Path, tmp_path: Path) -> None:
    ranks = ("--set", "pretrain.recipe.run.ranks=2", "--set", "rounds=1")
    code, printed = finish("run", loop_file, "--out", tmp_path / "loop", *ranks)
    assert code == 0, printed
    recipe = json.loads(next((tmp_path / "loop").glob("round-1/pretrain-*/recipe.json")).read_text())
    assert recipe["run"]["ranks"] == 2
    assert (tmp_path / "loop/round-1/models/filter/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["pretrain.start=continue", "pretrain.texts=sample"])
def test_the_options_of_pretrain(setting: str, loop_file: Path, loop: Path, tmp_path: Path) -> None:
    assert main(["run", str(loop_file), "--local", "--out", str(tmp_path / "loop"), "--set", setting]) == 0
    weights = [weights_digest(str(folder / "round-2/models/pretrained")) for folder in (tmp_path / "loop", loop)]
    assert weights[0] != weights[1]
