"""Example of a judge: a shipped filter, except that a text that is a file name never matches."""

import re
from collections.abc import Sequence
from typing import Any

from capfilt.models.factory import LoadRequest
from capfilt.models.protocols import Match, States
from capfilt.models.registry import load_system

FILE_NAME = re.compile(r"\b(img|dsc|dcim|image|screenshot)[ _-]?\d+\b|\b(jpe?g|png|gif|webp)\b")


class NoFileNames:
    """Answers as the inner judge does, except that a text with a file name in it gets P(match) = 0."""

    def __init__(self, inner: Any, card: Any) -> None:
        self._inner = inner
        self.card = card

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # prepare, encode, embed, clean, device, input_key, ...

    def match(self, states: States, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """Return a `Match` for each text of each image. The texts are cleaned: lower case, without punctuation."""
        found = self._inner.match(states, texts)
        return [
            [Match(itc=m.itc, itm=0.0) if FILE_NAME.search(text) else m for text, m in zip(some, matches, strict=True)]
            for some, matches in zip(texts, found, strict=True)
        ]


class NoFileNamesFactory:
    """Loads the judge around `tiny/filter`."""

    model_types = ()
    scores = ("itc", "itm")
    prompt = None

    def load(self, request: LoadRequest) -> NoFileNames:
        """Load the inner judge; the request's card states the model's name and version."""
        inner = load_system("tiny/filter", device=request.device, precision=request.precision)
        return NoFileNames(inner, request.card)


FACTORY = NoFileNamesFactory()
