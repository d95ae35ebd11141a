"""Every example runs from a clean checkout without network, prints something, and writes nothing into the checkout."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from capfilt.models import registry

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "caption_and_judge": r"(itc -?\d\.\d\d  itm \d\.\d\d  [\s\S]+){2}",
    "custom_judge": r"below_itm_threshold +0\.00  IMG_1000\.JPG[\s\S]+kept +0\.\d\d  \w",
    "filter_my_folder": r"23 images, \d+ kept",
    "recaption": r"15 images; the caption won for \d+ of them",
    "own_threshold": r"itm >= 0.9: \d+ texts of 32 rows kept",
    "read_the_results": r"DuckDB[\s\S]+Polars[\s\S]+datasets\s+\d+ pairs",
    "train_a_captioner": r"model\.safetensors[\s\S]+step 4: loss \d",
}
SLOW = {"train_a_captioner"}


@pytest.fixture(autouse=True)
def no_systems_left() -> Iterator[None]:
    """An example's own systems are not known to other tests."""
    yield
    registry._REGISTERED.clear()
    registry.factories.cache_clear()


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
