"""Fingerprints: what made a stage's output, as a short hash for names and as the material that shows what changed."""

import hashlib
import json
from typing import Any


def canonical(material: Any) -> str:
    """JSON with sorted keys and no spaces; equal material gives equal text."""
    return json.dumps(material, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(material: Any) -> str:
    """The first 12 hex digits of sha256 over the canonical JSON."""
    return hashlib.sha256(canonical(material).encode()).hexdigest()[:12]


_ABSENT = object()


def changes(old: Any, new: Any, where: str = "", limit: int = 4) -> list[str]:
    """Where two materials differ, each as `key: old -> new`; the first `limit`. Empty only if they are equal."""
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
