from collections.abc import Callable

import pytest

Verdicts = Callable[..., list[str | None]]


@pytest.mark.parametrize(
    ("itc", "itm", "reason"),
    [
        (0.3, 0.6, None),
        (0.3, 0.4, "below_itm_threshold"),
        (0.2, 0.6, "below_itc_threshold"),
        (0.2, 0.4, "below_both"),
        (None, 0.4, "no_score"),
        (0.3, None, "no_score"),
    ],
)
def test_verdicts_on_one_text(verdicts: Verdicts, itc: float | None, itm: float | None, reason: str | None) -> None:
    assert verdicts("both", (itc, itm)) == [reason]
