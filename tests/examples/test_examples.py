"""Every example runs from a clean checkout without network, prints something, and writes nothing into the checkout."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "caption_and_judge": r"(itc -?\d\.\d\d  itm \d\.\d\d  [\s\S]+){2}",
    "filter_my_folder": r"23 images, \d+ kept",
    "recaption": r"15 images; the caption won for \d+ of them",
    "own_threshold": r"itm >= 0.9: \d+ texts of 32 rows kept",
    "read_the_results": r"DuckDB[\s\S]+Polars[\s\S]+datasets\s+\d+ pairs",
    "train_a_captioner": r"model\.safetensors[\s\S]+step 4: loss \d",
}
SLOW = {"train_a_captioner"}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES} == set(SAYS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in sorted(SAYS)]
)
def test_the_example_says_what_it_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert re.search(SAYS[name], capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
