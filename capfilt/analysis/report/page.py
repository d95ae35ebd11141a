"""Rendering of the HTML pages: Jinja2 with autoescape, and the filters that format values.

The pages show untrusted texts, keys and URLs. Therefore Jinja2 escapes everything. The Content-Security-Policy allows
one script by its hash, inline styles and pictures inside the file; it allows no request.
"""

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from capfilt.analysis.sql import visible

_HERE = Path(__file__).parent
_LONGEST = 400
"""Maximum number of characters that are shown of a text."""


def render(template: str, context: Mapping[str, Any]) -> str:
    """Render a template of this folder; it also gets `style`, `script` and the script's `digest`."""
    env = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"short": _short, "words": _words, "verdict": _verdict, "num": _number, "int": "{:,}".format}
    env.filters |= {"percent": "{:.1%}".format, "score": _score}
    script, style = (_HERE / "report.js").read_text("utf-8"), (_HERE / "report.css").read_text("utf-8")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return env.get_template(template).render(**context, script=Markup(script), style=Markup(style), digest=digest)


def _short(text: str | None) -> str:
    """Shorten a text to what the report shows, without invisible characters."""
    return "" if text is None else visible(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")


def _words(name: str | None) -> str:
    """Format a column's value as words: `duplicate:exact` -> `duplicate: exact`."""
    return "–" if name is None else name.replace("_", " ").replace(":", ": ")


def _verdict(reason: str | None) -> str:
    """Format a reason for a card; None is `kept`."""
    return "kept" if reason is None else _words(reason.removesuffix("_threshold"))


def _number(value: float) -> str:
    """Format a threshold as the script does."""
    return f"{value:.3f}".removesuffix("0")


def _score(value: float | None) -> str:
    """Format a score or metric with three digits."""
    return "–" if value is None else f"{value:.3f}"
