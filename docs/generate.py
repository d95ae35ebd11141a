"""Generate the reference tables of the site from the code, when mkdocs builds it.

A page asks for a table by a line `<!-- generated: NAME -->`; the names are the keys of `TABLES`. Settings come from the
pydantic models: types, ranges and defaults from their JSON Schema, meanings from the docstrings below the fields. So a
new key, column, reason or command is on the site without an edit.
"""

import argparse
import ast
import inspect
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

_MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
Schema = dict[str, Any]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page; mkdocs calls this for every page. Raises KeyError for an unknown table."""
    return _MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return field name -> the docstring below it, on one line; fields without a docstring are absent."""
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for node, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(below, ast.Expr):
            value = below.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found[node.target.id] = " ".join(value.value.split())
    return found


def settings_models(model: type[BaseModel], path: str = "") -> dict[type[BaseModel], list[str]]:
    """Map the model and every settings model that its fields name to the keys where they stand, in the file's order.

    A key is written `sources[].download` (below a list) or `resources.*` (below a mapping); the model itself is "".
    """
    found = {model: [path]}
    for name, field in model.model_fields.items():
        for below, suffix in _models_in(field.annotation):
            for one, places in settings_models(below, f"{path}.{name}{suffix}".lstrip(".")).items():
                found.setdefault(one, []).extend(place for place in places if place not in found[one])
    return found


def _models_in(annotation: Any, suffix: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, suffix
    suffix += {list: "[]", dict: ".*"}.get(get_origin(annotation), "")
    for part in get_args(annotation):
        yield from _models_in(part, suffix)


def settings_table(model: type[BaseModel], places: list[str]) -> str:
    """Return a heading (the keys where these settings stand), the class's docstring and a table of its keys."""
    schema = model.model_json_schema()
    meanings = {name: _summary(field.annotation) for name, field in model.model_fields.items()}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            meanings |= field_docstrings(base)
    rows = [
        f"| `{name}` | {_type(part)} | {_default(name, part, schema)} | {_cell(meanings[name])} |"
        for name, part in schema.get("properties", {}).items()
    ]
    title = ", ".join(f"`{place}`" for place in places if place) or "Top level"
    head = f"### {title} ({model.__name__}) {{ #{model.__name__.lower()} }}"
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows] if rows else []
    return "\n".join([head, "", inspect.cleandoc(model.__doc__ or ""), "", *table, ""])


def settings_reference(load: Callable[[], type[BaseModel]]) -> str:
    """Return the tables of a settings model and of everything below it."""
    return "\n".join(settings_table(model, places) for model, places in settings_models(load()).items())


def _summary(annotation: Any) -> str:
    """Return the first sentence of the one settings model that a key takes, for keys without a docstring."""
    found = [model for model, _ in _models_in(annotation)]
    text = " ".join(inspect.cleandoc(found[0].__doc__ or "").split()) if len(found) == 1 else ""
    return text.split(". ")[0].rstrip(".") + "." if text else ""


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _type(part: Schema) -> str:
    """Return a readable type: links to other tables, allowed words, ranges."""
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    for combined in ("anyOf", "oneOf", "allOf"):
        if combined in part:
            return " or ".join(_type(one) for one in part[combined])
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if part.get("type") == "array":
        return f"list of {_type(part['items'])}" if "items" in part else "list"
    if part.get("type") == "object":
        values = part.get("additionalProperties")
        return f"mapping to {_type(values)}" if isinstance(values, dict) else "mapping"
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    return names.get(part.get("type", ""), part.get("type", "any")) + _range(part)


def _range(part: Schema) -> str:
    bounds = [
        f"{sign} {part[key]:,}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in part
    ]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(name: str, part: Schema, schema: Schema) -> str:
    if name in schema.get("required", ()):
        return "**required**"
    if "default" not in part or (isinstance(part["default"], dict) and "$ref" in part):
        return "as below"
    return f"`{_cell(json.dumps(part['default'], ensure_ascii=False))}`"


def columns_table(columns: tuple[Any, ...]) -> str:
    """Return a table of stored columns: name, Arrow type, meaning with unit and range."""
    rows = [f"| `{column.name}` | `{column.type}` | {_cell(column.description)} |" for column in columns]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def _columns() -> str:
    """Return a section per stage that writes shards: what it does, its folder, its SQL view, its columns."""
    from capfilt.stages.catalog import STAGES

    found = []
    for stage in STAGES:
        table = stage.spec.table
        if table is not None:
            about = inspect.cleandoc(inspect.getmodule(stage).__doc__ or "").split("\n\n")[0]
            about = re.sub(rf"^{table.stage}: ", "", about, flags=re.IGNORECASE)
            place = f"Folder `{table.folder_name('<fp>')}`, SQL view `{table.view}`."
            found += [
                f"## {table.stage} {{ #{table.stage} }}",
                "",
                about[:1].upper() + about[1:],
                "",
                place,
                "",
                columns_table(tuple(table)),
                "",
            ]
    return "\n".join(found)


def _reasons() -> str:
    from capfilt.selection.reasons import REASONS

    rows = [f"| `{reason}` | {_cell(meaning)} |" for reason, meaning in REASONS.items()]
    return "\n".join(["| reason | meaning |", "|---|---|", *rows])


def _policies() -> str:
    """Return a table of the policies: the scores that each needs, and its own description with default settings."""
    from capfilt.config.pipeline import SelectSettings
    from capfilt.selection.policies import POLICIES

    rows = []
    for policy in POLICIES:
        select = SelectSettings(policy=policy.name)
        needs = ", ".join(policy.needs(select)) or "none"
        rows.append(f"| `{policy.name}` | {needs} | {_cell(policy.describe(select))} |")
    return "\n".join(["| policy | scores | with the default settings |", "|---|---|---|", *rows])


def _cards() -> str:
    """Return a table of the model cards in `models/`, but for those of tokenizers."""
    from capfilt.models.card import cards

    head = "| model | system | roles | scores | licence | pinned commit |"
    rows = [
        f"| `{name}` | {card.system} | {', '.join(card.roles)} | {', '.join(card.scores) or '-'} "
        f"| {card.licence or 'unknown'} | {f'`{card.revision[:12]}`' if card.revision else 'ships'} |"
        for name, card in cards().items()
        if card.roles
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _card_keys() -> str:
    from capfilt.models.card import ModelCard

    return settings_table(ModelCard, ["card.yaml"]).replace("](#decoding)", "](reference/pipeline.md#decoding)")


def _commands() -> str:
    """Return the help of every command, as the terminal prints it."""
    from capfilt.cli.app import parser

    os.environ |= {"COLUMNS": "110", "NO_COLOR": "1"}
    commands = next(one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    found = []
    for name, command in commands.choices.items():
        found += [f"## capfilt {name} {{ #{name} }}", "", "```text", command.format_help().strip(), "```", ""]
    return "\n".join(found)


def _errors() -> str:
    from capfilt import errors

    found = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.CapfiltError)]
    rows = [f"| `{one.__name__}` | {one.exit_code} | {_cell((one.__doc__ or '').splitlines()[0])} |" for one in found]
    return "\n".join(["| class | exit code | when |", "|---|---|---|", *rows])


def _pipeline() -> type[BaseModel]:
    from capfilt.config.pipeline import Pipeline

    return Pipeline


def _recipe() -> type[BaseModel]:
    from capfilt.training.objectives.registry import DEFAULT, find_objective

    return find_objective(DEFAULT).recipe_type


def _recipe_kinds() -> str:
    from capfilt.training.objectives.registry import DEFAULT, find_objective

    kinds = find_objective(DEFAULT).kinds
    rows = [
        f"| `{section}.{key}` | " + " | ".join(_filled(kinds[kind], section, key) for kind in kinds) + " |"
        for section, key in dict.fromkeys((s, k) for kind in kinds.values() for s, part in kind.items() for k in part)
    ]
    return "\n".join([f"| key | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|", *rows])


def _filled(kind: Mapping[str, Mapping[str, object]], section: str, key: str) -> str:
    return f"`{json.dumps(kind[section][key])}`" if key in kind.get(section, {}) else ""


TABLES: dict[str, Callable[[], str]] = {
    "pipeline": lambda: settings_reference(_pipeline),
    "recipe": lambda: settings_reference(_recipe),
    "recipe-kinds": _recipe_kinds,
    "commands": _commands,
    "columns": _columns,
    "reasons": _reasons,
    "errors": _errors,
    "cards": _cards,
    "card-keys": _card_keys,
    "policies": _policies,
}
"""Name in a page's mark -> the Markdown that takes its place."""

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(TABLES[sys.argv[1]]())
