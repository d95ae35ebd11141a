"""Every settings key, stored column, reason and command is on its page of the site."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from capfilt.cli.app import parser
from capfilt.config.pipeline import Pipeline, SelectSettings
from capfilt.models.card import ModelCard, cards
from capfilt.selection.policies import POLICIES
from capfilt.selection.reasons import REASONS
from capfilt.stages.catalog import STAGES
from capfilt.training.objectives.blip.settings import KINDS, BlipRecipe

ROOT = Path(__file__).parents[2]
Page = Callable[[str], str]


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Settings models below an annotation, found apart from the generator."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for part in get_args(annotation):
        yield from models(part)


def sections(text: str) -> dict[str, str]:
    """Anchor -> text of a `###` section."""
    found = re.split(r"^### .*\{ #(\w+) \}$", text, flags=re.MULTILINE)
    return {name: part.split("\n## ")[0] for name, part in zip(found[1::2], found[2::2], strict=True)}


@pytest.mark.parametrize(("name", "top"), [("reference/pipeline.md", Pipeline), ("reference/recipe.md", BlipRecipe)])
def test_every_settings_key_has_a_row_with_its_default_on_its_page(page: Page, name: str, top: type[BaseModel]) -> None:
    found = sections(page(name))
    for model in models(top):
        table = found[model.__name__.lower()]
        rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
        assert list(rows) == list(model.model_fields)
        for key, field in model.model_fields.items():
            assert ("**required**" in rows[key]) == field.is_required()


def test_a_key_shows_type_range_default_and_docstring(page: Page) -> None:
    table = sections(page("reference/pipeline.md"))["selectsettings"]
    assert SelectSettings.model_fields["itm_threshold"].default == 0.5
    meaning = "Least P(match). Left out: what the judge's card suggests, else this."
    assert f"| `itm_threshold` | number ≥ 0, ≤ 1 | `0.5` | {meaning} |" in table
    assert "`itm_threshold`, `calibrated`, `itc_threshold`" in table


def test_the_defaults_of_each_kind_of_recipe_are_there(page: Page) -> None:
    text = page("reference/recipe.md")
    for kind in KINDS.values():
        for section, values in kind.items():
            assert all(f"`{section}.{key}`" in text for key in values)


def test_every_stored_column_is_on_the_page_with_its_type(page: Page) -> None:
    text = page("reference/data-format.md")
    tables = [stage.spec.table for stage in STAGES if stage.spec.table is not None]
    assert len(tables) >= 6
    for table in tables:
        (part,) = re.findall(rf"^## {table.stage} \{{.*\n((?:(?!^## ).*\n)*)", text, re.MULTILINE)
        assert f"`{table.view}`" in part
        assert re.findall(r"^\| `(\w+)` \| `(.+?)` \|", part, re.MULTILINE) == [
            (column.name, str(column.type)) for column in table
        ]
    assert all(f"| `{reason}` |" in text for reason in REASONS)


def test_every_policy_is_on_its_page_with_its_own_words(page: Page) -> None:
    text = page("concepts.md")
    for policy in POLICIES:
        assert f"| `{policy.name}` |" in text
        assert policy.describe(SelectSettings(policy=policy.name)) in text


def test_every_card_is_on_the_page_of_models(page: Page) -> None:
    text = page("models.md")
    for name, card in cards().items():
        assert (f"| `{name}` | {card.system} |" in text) == bool(card.roles)
    assert list(re.findall(r"^\| `(\w+)` \|.*\|.*\|.*\|$", sections(text)["modelcard"], re.MULTILINE)) == list(
        ModelCard.model_fields
    )


def test_every_command_is_on_the_page_with_its_options(page: Page) -> None:
    text = page("reference/commands.md")
    commands = next(action for action in parser()._actions if action.dest == "command").choices
    assert commands
    for name, command in dict(commands).items():
        assert f"usage: capfilt {name}" in text
        for action in command._actions:
            assert all(option in text for option in action.option_strings)


def test_every_mark_of_a_page_names_a_table_and_every_table_is_used(page: Page, generator: dict[str, Any]) -> None:
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
    marks = re.findall(r"^<!-- generated: ([\w-]+) -->$", "\n".join(pages), flags=re.MULTILINE)
    assert sorted(marks) == sorted(generator["TABLES"])
