from collections.abc import Callable

import pytest

Verdicts = Callable[..., list[str | None]]


@pytest.mark.parametrize(
    ("itc", "itm", "reason"),
    [
        (0.2, 0.9, "below_itc_threshold"),
        (None, 0.9, "no_score"),
        (0.25, None, None),
    ],
)
def test_verdicts_on_one_text(verdicts: Verdicts, itc: float | None, itm: float | None, reason: str | None) -> None:
    assert verdicts("itc_threshold", (itc, itm)) == [reason]
