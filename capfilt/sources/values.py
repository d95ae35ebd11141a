"""Make untrusted values safe to store: valid UTF-8, valid JSON, nothing dropped silently."""

import json
import math

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def repair_text(value: str | bytes) -> tuple[str, bool]:
    """Return valid Unicode, and True if something was replaced by U+FFFD."""
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
        return text, "\ufffd" in text and text.encode() != value
    try:
        value.encode()
        return value, False
    except UnicodeEncodeError:  # undecodable bytes of a file (surrogateescape), or a lone \ud800 of a JSON file
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True


def key_text(value: object) -> str:
    """Return a key as text. Bad bytes are escaped, so that different keys stay different."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode()


def plain(value: object) -> Json:
    """Convert a cell to JSON: bytes to repaired text, NaN and infinities to null, dates and other types to text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | bytes):
        return repair_text(value)[0]
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {repair_text(str(name))[0]: plain(item) for name, item in value.items()}
    return repair_text(str(value))[0]


def texts(value: object) -> list[tuple[str | None, bool]]:
    """Return (text, True if repaired) for each text of a cell: one per element of a list. Never empty."""
    values = value if isinstance(value, list) and value else [None if isinstance(value, list) else value]
    return [(None, False) if one is None else _text(one) for one in values]


def _text(value: object) -> tuple[str, bool]:
    return repair_text(value) if isinstance(value, str | bytes) else (repair_text(str(value))[0], False)


def optional_text(value: object) -> str | None:
    """Return a cell as repaired text; None if it is null or empty."""
    return (_text(value)[0] or None) if value is not None else None


def json_object(data: bytes) -> dict[str, object] | None:
    """Return the object in a JSON file, or None if there is none (broken, nested too deep, a list)."""
    try:
        found = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
