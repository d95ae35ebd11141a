"""Fingerprints: everything that determines a stage's output, hashed for folder names.

A stage's folder also stores the inputs of its fingerprint (fingerprint.json), so that a change can be explained.
"""

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(inputs: Any) -> str:
    """Return the first 12 hex digits of sha256 over the canonical JSON of what determines an output."""
    return hashlib.sha256(canonical(inputs).encode()).hexdigest()[:12]


_ABSENT = object()


def changes(old: Any, new: Any, where: str = "", limit: int = 4) -> list[str]:
    """Describe where the inputs of two fingerprints differ.

    Args:
        old, new: JSON values.
        where: dotted key of these values in a larger one.
        limit: the number of differences to return at most.

    Returns:
        `key: old -> new` per difference; empty only if the values are equal.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in sorted({*old, *new})]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if _same(old, new) else [f"{where}: {_short(old)} -> {_short(new)}"]
    return [line for key, a, b in pairs for line in changes(a, b, f"{where}.{key}".lstrip("."))][:limit]


def _same(old: Any, new: Any) -> bool:
    return old is new or (_ABSENT not in (old, new) and canonical(old) == canonical(new))


def _short(value: Any) -> str:
    text = "(absent)" if value is _ABSENT else canonical(value)
    return text if len(text) <= 60 else text[:57] + "..."
