from collections.abc import Callable

import pytest

Verdicts = Callable[..., list[str | None]]


@pytest.mark.parametrize(
    ("itc", "itm", "reason"),
    [
        (None, None, None),
        (0.0, 0.0, None),
    ],
)
def test_verdicts_on_one_text(verdicts: Verdicts, itc: float | None, itm: float | None, reason: str | None) -> None:
    assert verdicts("keep_all", (itc, itm)) == [reason]
