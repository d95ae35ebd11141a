"""Shared by all YAML files of capfilt: finding a file, `--set a.b=c`, relative paths, error messages."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from capfilt.errors import ConfigError

ROOTS = (Path(__file__).parents[1] / "_shipped", Path(__file__).parents[2])
"""Folders of shipped files: inside an installed wheel, or next to the package in a checkout."""
SHIPPED = tuple(root / "pipelines" for root in ROOTS)
"""Shipped pipelines and recipes."""


class ConfigModel(BaseModel):
    """A mapping of a YAML file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def find_yaml(name: str | Path, keys: tuple[str, ...], what: str) -> Path:
    """Return the file itself, or the shipped file of that name with one of `keys` at its top (`recipe`, `sources`).

    Raises:
        ConfigError: there is neither; suggests a similar name.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = {
        p.relative_to(root).with_suffix("").as_posix(): p
        for root in SHIPPED
        for p in root.rglob("*.yaml")
        if any(f"\n{key}:" in "\n" + p.read_text(encoding="utf-8") for key in keys)
    }
    if str(name) in known:
        return known[str(name)]
    beside = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(name), [*known, *beside], 1)
    meant = f"; did you mean {close[0]}?" if close else "."
    raise ConfigError(f"{name}: no such file or shipped {what}{meant} Shipped: {', '.join(sorted(known)) or 'none'}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the file's mapping. Raises ConfigError: not readable, not YAML, not a mapping."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(raw).__name__}")
    return raw


def anchor(raw: dict[str, Any], base: Path, files: Sequence[str], names: Sequence[str] = ()) -> None:
    """Make relative paths absolute, in place. At `names`, a name (tiny/filter, a hub id) stays unless it is a file.

    A key is written `a.*.b`, with `*` for every entry of a list. URLs (`scheme://`) are not changed.
    """
    for keys in (*files, *names):
        *parents, last = keys.split(".")
        for holder in _below(raw, parents):
            value = holder.get(last)
            if not isinstance(value, str) or not value or "://" in value:
                continue
            path = base / Path(value).expanduser()
            if keys not in names or value.startswith((".", "/", "~")) or path.exists():
                holder[last] = str(path.resolve())


def _below(here: Any, keys: list[str]) -> list[dict[str, Any]]:
    """Return the mappings at `keys` (`*`: every entry of a list); none if the document has another structure."""
    if not keys:
        return [here] if isinstance(here, dict) else []
    if keys[0] == "*":
        return [found for item in here for found in _below(item, keys[1:])] if isinstance(here, list) else []
    return _below(here.get(keys[0]), keys[1:]) if isinstance(here, dict) else []


def override(raw: Any, setting: str) -> None:
    """Apply one `a.b.0.c=value` to a parsed YAML document, in place; the value is parsed as YAML.

    Raises:
        ConfigError: no `=`, a value that is not YAML, or a key below something that is neither mapping nor list.
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
    """Return the value at `key`; in a mapping, a missing one becomes an empty mapping."""
    if isinstance(here, list):
        return here[_position(here, key, setting)]
    if isinstance(here, dict):
        if here.get(key) is None:
            here[key] = {}
        return here[key]
    raise ConfigError(f"--set {setting}: {key!r} is below a {type(here).__name__}, not a mapping or list")


def _position(items: list[Any], key: str, setting: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise ConfigError(f"--set {setting}: {key!r} is no index of a list of {len(items)}")
    return int(key)


def describe(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """Return one line per mistake: file, key, what was found, what is allowed; 'did you mean' for unknown keys."""
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


def _fields(model: type[BaseModel], loc: Iterable[int | str]) -> set[str]:
    """Return the field names of the nested model at `loc`; of all members of a union without a tag."""
    here = [model]
    for part in loc:
        nested = [found.model_fields[part].annotation for found in here if part in found.model_fields]
        if nested:
            here = [found for annotation in nested for found in _models_in(annotation)]
        else:  # the tag of a union's member, the index in a list or the key in a mapping
            here = [found for found in here if _has_tag(found, part)] or here
    return {name for found in here for name in found.model_fields}


def _has_tag(model: type[BaseModel], tag: int | str) -> bool:
    """Return whether a field of the model is a Literal that allows `tag`, such as `format`."""
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation such as `list[A | B] | None`, or the class itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in get_args(annotation) for found in _models_in(arg)]
