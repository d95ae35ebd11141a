from collections.abc import Callable

import pytest

Verdicts = Callable[..., list[str | None]]


@pytest.mark.parametrize(
    ("itc", "itm", "reason"),
    [
        (None, 0.6, None),
        (0.9, None, "no_score"),
        (0.9, 0.4, "below_itm_threshold"),
        (None, 0.5, None),
    ],
)
def test_verdicts_on_one_text(verdicts: Verdicts, itc: float | None, itm: float | None, reason: str | None) -> None:
    assert verdicts("itm_threshold", (itc, itm)) == [reason]
