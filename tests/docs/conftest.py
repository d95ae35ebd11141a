"""The site's generator, loaded from its file: docs/ is no package."""

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def generator() -> dict[str, Any]:
    return run_path(str(ROOT / "docs/generate.py"))


@pytest.fixture(scope="session")
def page(generator: dict[str, Any]) -> Any:
    """page("reference/pipeline.md"): a page's Markdown with its generated tables in place."""

    def read(name: str) -> str:
        text: str = generator["on_page_markdown"]((ROOT / "docs" / name).read_text(encoding="utf-8"))
        return text

    return read
