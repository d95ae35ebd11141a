"""The site's generator, loaded from its file: docs/ is no package."""

import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def generator() -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "docs"))  # as mkdocs does for its hooks
    try:
        return run_path(str(ROOT / "docs/generate.py"))
    finally:
        sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="session")
def page(generator: dict[str, Any]) -> Any:
    """page("reference/pipeline.md"): a page's Markdown with its generated tables in place."""

    def read(name: str) -> str:
        text: str = generator["on_page_markdown"]((ROOT / "docs" / name).read_text(encoding="utf-8"))
        return text

    return read
