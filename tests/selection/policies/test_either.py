from collections.abc import Callable

import pytest

Verdicts = Callable[..., list[str | None]]


@pytest.mark.parametrize(
    ("itc", "itm", "reason"),
    [
        (0.2, 0.6, None),
        (0.3, None, None),
        (None, 0.6, None),
        (0.2, 0.4, "below_both"),
        (0.2, None, "no_score"),
        (None, None, "no_score"),
    ],
)
def test_verdicts_on_one_text(verdicts: Verdicts, itc: float | None, itm: float | None, reason: str | None) -> None:
    assert verdicts("either", (itc, itm)) == [reason]
