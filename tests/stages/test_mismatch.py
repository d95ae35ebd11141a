from collections.abc import Callable
from typing import Any

from capfilt.media.text import pre_caption
from capfilt.stages.mismatch import mismatched

Make = Callable[..., Any]


def test_each_human_row_has_the_text_of_another_image(make_layout: Make, pairs_row: Make) -> None:
    human = [pairs_row(i, role="human") for i in range(5)]
    repeated = pairs_row(5, role="human", data=human[0]["image"]["bytes"], sha256=human[0]["sha256"])
    layout = make_layout([[*human, repeated, pairs_row(6), pairs_row(7, role="human", text="!!")]])
    found = mismatched(layout, 0, pre_caption)
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    own = {i: f"a round thing number {i}" for i in range(6)}
    assert all(found[i] != own[i] for i in found)
    assert found[0] != own[5]
    assert found[5] != own[0]
    assert mismatched(layout, 0, pre_caption) == found


def test_one_human_row_has_none(make_layout: Make, pairs_row: Make) -> None:
    assert mismatched(make_layout([[pairs_row(0, role="human"), pairs_row(1)]]), 0, pre_caption) == {}
