"""Tables of settings from their pydantic models: types, ranges, defaults, and the docstrings below the fields."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

Schema = dict[str, Any]


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
    """Map the model and every settings model that its fields name to the keys that take them, in the file's order.

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
    """Return a heading (the keys that take these settings), the class's docstring and a table of its keys."""
    schema = model.model_json_schema()
    meanings = {name: _summary(field.annotation) for name, field in model.model_fields.items()}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            meanings |= field_docstrings(base)
    rows = [
        f"| `{name}` | {_type(part)} | {_default(name, part, schema)} | {cell(meanings[name])} |"
        for name, part in schema.get("properties", {}).items()
    ]
    title = ", ".join(f"`{place}`" for place in places if place) or "Top level"
    head = f"### {title} ({model.__name__}) {{ #{model.__name__.lower()} }}"
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows] if rows else []
    return "\n".join([head, "", inspect.cleandoc(model.__doc__ or ""), "", *table, ""])


def settings_reference(top: type[BaseModel]) -> str:
    """Return the tables of a settings model and of everything below it."""
    return "\n".join(settings_table(model, places) for model, places in settings_models(top).items())


def _summary(annotation: Any) -> str:
    """Return the first sentence of the one settings model that a key takes, for keys without a docstring."""
    found = [model for model, _ in _models_in(annotation)]
    text = " ".join(inspect.cleandoc(found[0].__doc__ or "").split()) if len(found) == 1 else ""
    return text.split(". ")[0].rstrip(".") + "." if text else ""


def cell(text: str) -> str:
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
    return f"`{cell(json.dumps(part['default'], ensure_ascii=False))}`"
