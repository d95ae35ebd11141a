from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from capfilt.config.pipeline import SelectSettings
from capfilt.selection.policies import policy_of
from capfilt.selection.texts import Texts

Score = float | None
Verdicts = Callable[..., list[str | None]]


@pytest.fixture
def verdicts() -> Verdicts:
    """verdicts("both", (itc, itm), ..., itm_threshold=0.5): the policy's answers for the texts of one image.

    The first text is the row's own web text, the others are captions.
    """

    def decide(policy: Any, *scores: tuple[Score, Score], **select: Any) -> list[str | None]:
        settings, n = SelectSettings(policy=policy, **select), len(scores)
        itc, itm = (np.array([pair[i] for pair in scores], dtype=np.float32) for i in (0, 1))
        origin = np.array(["web", *["synthetic"] * (n - 1)], dtype=object)
        image, nothing = np.zeros(n, dtype=np.int64), np.full(n, None, dtype=object)
        texts = Texts(image, origin, np.arange(-1, n - 1), itc, itm, nothing, np.zeros(n, dtype=bool))
        return list(policy_of(settings).decide(texts, settings))

    return decide
