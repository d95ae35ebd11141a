import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from capfilt.cli import main
from capfilt.training.loop import train
from capfilt.training.recipe import load_recipe
from capfilt.version import __version__

pytestmark = pytest.mark.usefixtures("one_thread")

Recipes = Callable[..., Path]
MATCHER = {
    "t2i_r1",
    "t2i_r5",
    "t2i_r10",
    "i2t_r1",
    "i2t_r10",
    "t2i_r1_itm",
    "i2t_r1_itm",
    "itc_auc",
    "itm_auc",
    "itm_ap",
}
MATCHER |= {"kept_matched", "kept_mismatched", "ece", "t2i_r1_ci", "itc_auc_ci", "itm_auc_ci", "reliability"}
CAPTIONER = {"cider", "bleu4", "cider_constant", "cider_nearest", "cider_ci", "distinct1", "distinct2", "examples"}
FACTS = {"model", "pairs", "text", "role", "capfilt", "n", "seed"}


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """Return the error message of a command that must fail without a traceback."""
    assert main(list(args)) == code
    message = capsys.readouterr().err
    assert f"capfilt {args[0]}: " in message
    assert "Traceback" not in message
    return message


def test_train_then_eval(
    tiny_recipe: Recipes,
    tiny_pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(tiny_recipe()), "--set", "out=here/run", "--set", "optim.epochs=1"]) == 0
    printed = capsys.readouterr().out
    model = tmp_path / "here/run/last"
    assert f"model   {model}" in printed
    assert f"log     {tmp_path / 'here/run/log.jsonl'}" in printed
    pairs = ["--pairs", str(tiny_pairs), "--text", "long", "--threads", "1"]
    assert main(["eval", str(model), *pairs, "--json", "match.json"]) == 0
    assert "Retrieval" in capsys.readouterr().out
    found = json.loads(Path("match.json").read_text())
    assert found.keys() >= MATCHER | FACTS
    assert (found["n"], found["n_texts"], found["role"], found["capfilt"]) == (24, 48, "judge", __version__)
    assert all(0 <= found[key] <= 1 for key in ("t2i_r1", "t2i_r10", "i2t_r1", "itc_auc", "itm_auc"))
    assert (
        main(["eval", str(model), *pairs, "--role", "captioner", "--train", str(tiny_pairs), "--json", "caps.json"])
        == 0
    )
    assert "CIDEr" in capsys.readouterr().out
    found = json.loads(Path("caps.json").read_text())
    assert found.keys() >= CAPTIONER | FACTS
    assert found["n_train"] == 24


def test_errors_have_no_traceback(
    tiny_recipe: Recipes, tiny_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = train(load_recipe(tiny_recipe("filter", optim={"epochs": 1})))
    capsys.readouterr()
    path, pairs = str(tiny_recipe("captioner", "other")), ["--pairs", str(tiny_pairs)]
    assert "did you mean tiny/pretrain?" in refused(capsys, "train", "tiny/pretain")
    assert "did you mean 'lr'?" in refused(capsys, "train", path, "--set", "optim.lrr=1")
    assert "write it as key.key=value" in refused(capsys, "train", path, "--set", "optim")
    assert "gone.parquet" in refused(capsys, "train", path, "--set", "data.sources.0.path=gone.parquet")
    if not torch.cuda.is_available():
        assert "sees 0 GPUs" in refused(capsys, "train", path, "--set", "run.device=cuda")
    assert "not finite; rows" in refused(capsys, "train", path, "--set", "optim.lr=1.0e+30", code=3)
    assert "known" in refused(capsys, "eval", "tiny/filtr", *pairs).lower()
    assert "gone.parquet: no Parquet file there" in refused(
        capsys, "eval", str(model), "--pairs", str(tmp_path / "gone.parquet")
    )
    assert "no column 'caption'" in refused(capsys, "eval", str(model), *pairs, "--text", "caption")
    assert "not captioner" in refused(capsys, "eval", str(model), *pairs, "--role", "captioner", "--train", "x")
    assert "device 'gpu'" in refused(capsys, "eval", str(model), *pairs, "--device", "gpu")
    assert "no folder" in refused(capsys, "eval", str(model), *pairs, "--json", str(tmp_path / "gone/x.json"))


def test_a_captioner_needs_training_pairs(
    tiny_recipe: Recipes, tiny_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = train(load_recipe(tiny_recipe("captioner", optim={"epochs": 1})))
    assert "give --train" in refused(capsys, "eval", str(model), "--pairs", str(tiny_pairs))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--help"], ["train", "eval", "continues a run that was killed"]),
        (["train", "--help"], ["relative to the current directory", "tiny/captioner", "exit code", "--set a.b=c"]),
        (["eval", "--help"], ["--pairs", "fractions", "tiny/filter", "--image-id", "default: 32"]),
        (["--version"], [__version__]),
    ],
)
def test_help(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in " ".join(printed.split()) for word in words)


@pytest.mark.parametrize("args", [[], ["trian"], ["eval", "m"], ["eval", "m", "--pairs", "p", "--rerank", "0"]])
def test_wrong_usage_exits_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert "usage: capfilt" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = "import sys; from capfilt.cli.app import parser; parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_interrupt_says_that_training_can_be_continued(
    tiny_recipe: Recipes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("capfilt.training.loop.train", interrupted)
    assert main(["train", str(tiny_recipe())]) == 130
    assert "the same command continues from the last checkpoint" in capsys.readouterr().err


def test_schema_is_one_that_editors_take_and_doctor_finds_what_is_installed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"sources", "caption", "score", "dedup", "select", "emit"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("torch", "faiss", "CPU cores", "tiny/filter", "free disk"):
        assert word in printed
