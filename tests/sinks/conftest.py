"""Kept pictures as the sinks get them."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from capfilt.sinks.base import Picture
from capfilt.store.schema import CANDIDATES

CandidateRow = dict[str, Any]


@pytest.fixture
def ledger_text() -> Callable[..., CandidateRow]:
    """ledger_text(uid, text, origin="web", ...): a kept row of the ledger."""

    def make(uid: str, text: str, origin: str = "web", **changes: Any) -> CandidateRow:
        row: CandidateRow = {column.name: None for column in CANDIDATES}
        row |= {"uid": uid, "text": text, "origin": origin, "round": 0, "itc": 0.25, "itm": 0.5, "kept": True}
        if origin == "synthetic":
            row |= {
                "model": "tiny/captioner",
                "digest": "c" * 16,
                "decoding": '{"seed":0}',
                "sample": 0,
                "logprob": -1.5,
            }
        return row | changes

    return make


@pytest.fixture
def kept_picture(ledger_text: Callable[..., CandidateRow]) -> Callable[..., Picture]:
    """kept_picture(i, texts={"web": "a cat"}, format="PNG", size=8, ...): an image with texts by origin."""

    def make(i: int, texts: dict[str, str] | None = None, **changes: Any) -> Picture:
        uid, format_, size = f"{i:016x}", changes.pop("format", "PNG"), changes.pop("size", 8)
        buffer = BytesIO()
        Image.new("RGB", (size, size), (i * 40 % 256, 90, 200)).save(buffer, format_)
        told = tuple(ledger_text(uid, text, origin) for origin, text in (texts or {"web": f"thing {i}"}).items())
        facts: CandidateRow = {
            "url": f"https://a.example/{i}",
            "sha256": f"{i:064x}",
            "data": buffer.getvalue(),
            "texts": told,
        }
        return Picture(
            **{"uid": uid, "key": str(i), "width": size, "height": size, "format": format_} | facts | changes
        )

    return make
