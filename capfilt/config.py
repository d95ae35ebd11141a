"""What every YAML file of capfilt shares: `--set a.b=c`, and validation errors that a user can act on."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from capfilt.errors import ConfigError


def override(raw: Any, setting: str) -> None:
    """Apply one `a.b.0.c=value` to a parsed YAML document, in place; the value is parsed as YAML.

    Raises:
        ConfigError: no `=`, a value that is no YAML, or a step into something that is neither mapping nor list.
    """
    path, sign, text = setting.partition("=")
    *parents, last = path.split(".")
    if not sign or not last or not all(parents):
        raise ConfigError(f"--set {setting}: write it as key.key=value")
    here = raw
    for key in parents:
        here = _step(here, key, setting)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: the value is not YAML ({str(error).splitlines()[0]})") from error
    if isinstance(here, list):
        here[_position(here, last, setting)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise ConfigError(f"--set {setting}: {'.'.join(parents)} is a {type(here).__name__}, not a mapping or list")


def _step(here: Any, key: str, setting: str) -> Any:
    if isinstance(here, list):
        return here[_position(here, key, setting)]
    if isinstance(here, dict):
        if here.get(key) is None:
            here[key] = {}
        return here[key]
    raise ConfigError(f"--set {setting}: {key!r} is below a {type(here).__name__}, not a mapping or list")


def _position(items: list[Any], key: str, setting: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"--set {setting}: {key!r} is no place in a list of {len(items)}")
    return int(key)


def describe(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """One line a mistake: file, key, what was found, what is allowed; 'did you mean' for unknown keys."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            allowed = sorted(_fields(model, item["loc"][:-1]))
            near = difflib.get_close_matches(str(item["loc"][-1]), allowed, 1)
            message = "no such key" + (f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(allowed)}")
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"].endswith("_type") and isinstance(item["input"], dict | list):
            message += f" (found a {'mapping' if isinstance(item['input'], dict) else 'list'})"
        else:
            message = f"{message} (found {item['input']!r})" if not isinstance(item["input"], dict | list) else message
        lines.append(f"{where}: {key + ': ' if key else ''}{message}")
    return "\n".join(lines)


def _fields(model: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """Field names of the nested model at `loc`."""
    here: Any = model
    for part in loc:
        if isinstance(part, str) and isinstance(here, type) and issubclass(here, BaseModel):
            here = here.model_fields[part].annotation if part in here.model_fields else None
        here = _model_in(here)
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type):
        return annotation
    found = [_model_in(arg) for arg in get_args(annotation)]
    return next((a for a in found if isinstance(a, type) and issubclass(a, BaseModel)), None)
