"""What pages say by hand agrees with the code: messages, layers, links, the README's size."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from capfilt.config.load import validate
from capfilt.config.pipeline import Pipeline
from capfilt.config.source import SourceType
from capfilt.stages.catalog import STAGES

ROOT = Path(__file__).parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (ROOT / name).is_file()]
FAQ = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of the code; implicitly joined ones and f-strings whole, each value of an f-string as `…`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def yaml_blocks() -> list[tuple[str, dict[str, object]]]:
    """(page, mapping) of every YAML block of the README and the site whose keys are those of a pipeline file."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            raw = yaml.safe_load(block)
            if isinstance(raw, dict) and raw.keys() <= Pipeline.model_fields.keys():
                found.append((path.relative_to(ROOT).as_posix(), raw))
    return found


@pytest.mark.parametrize(("page", "raw"), yaml_blocks())
def test_pipelines_on_the_pages_are_valid(page: str, raw: dict[str, object]) -> None:
    whole = {"sources": [{"type": "parquet", "path": "pairs"}], "score": {"model": "tiny/filter"}}
    assert validate(whole | raw, page)


def test_pages_show_pipelines() -> None:
    assert {"README.md", "docs/quick-start.md", "docs/urls.md", "docs/clusters.md"} <= {
        page for page, _ in yaml_blocks()
    }


@pytest.fixture(scope="module")
def messages() -> str:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "capfilt").rglob("*.py"))
    return "\n".join(text for tree in trees for text in texts(tree))


@pytest.mark.parametrize("quoted", re.findall(r"^### `(.+)`$", FAQ, flags=re.MULTILINE))
def test_the_messages_of_the_faq_are_those_of_the_code(messages: str, quoted: str) -> None:
    parts = [part.strip() for part in quoted.split("…") if part.strip()]
    assert parts
    assert all(part in messages for part in parts), "reword docs/faq.md as the code's message"


def test_the_faq_quotes_messages() -> None:
    assert len(re.findall(r"^### `", FAQ, flags=re.MULTILINE)) >= 20


def test_the_layer_picture_and_table_show_the_layers_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    names = [name for row in layers for name in re.split(r"\s*[:|]\s*", row)]
    picture = (ROOT / "docs/layers.svg").read_text(encoding="utf-8")
    assert re.findall(r'class="layer">(\w+)<', picture) == names
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert table[: len(names)] == names


def test_the_table_of_stages_has_the_stages_of_the_pipeline_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/concepts.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows[: len(STAGES)] == [stage.spec.name for stage in STAGES]


@pytest.mark.parametrize("path", TOP, ids=lambda path: path.name)
def test_links_of_the_pages_at_the_top_resolve(path: Path) -> None:
    for link in _LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (ROOT / link.split("#")[0]).exists(), link


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 160


def test_modules_named_by_the_pages_exist() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md"), *TOP]
    pages += ROOT.glob("models/tiny/*/README.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"python -m ((?:capfilt|benchmarks|tests)[\w.]*)", text))
    assert named
    for name in named - {"capfilt.cli"}:
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


def pages() -> list[Path]:
    return [*TOP, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "data/README.md"]


def test_files_named_by_the_pages_exist() -> None:
    named = {
        (page.name, name)
        for page in pages()
        for name in re.findall(
            r"`((?:capfilt|tests|docs|pipelines|models|data|benchmarks|examples)/[\w./-]+)`",
            page.read_text(encoding="utf-8"),
        )
    }
    assert len(named) > 30
    for page, name in named:
        assert (ROOT / name).exists() or "NAME" in name, f"{page}: {name}"


def test_names_that_the_pages_find_in_a_file_are_there() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages())
    named = re.findall(r"`(\w+)` in\s+`(capfilt/[\w/]+\.py)`", text)
    assert len(named) >= 7
    for name, file in named:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), (name, file)


def test_every_type_of_source_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/sources.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(get_args(SourceType)) <= set(rows)
