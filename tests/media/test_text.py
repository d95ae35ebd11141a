from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.media.text import cell_texts, draw_text, pre_caption, text_slots


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A Dog.", "a dog"),
        ('"Hi!" (she said): #1; ~2*', "hi she said 1 2"),
        ("  two\n\nlines\tand a tab ", "two lines and a tab"),
        ("don't, well-known / a_b?", "don't, well-known / a_b?"),
        ("...", ""),
        ("", ""),
        ("ÉCOLE", "école"),
    ],
)
def test_cases(raw: str, clean: str) -> None:
    assert pre_caption(raw) == clean


def test_first_words_are_kept() -> None:
    text = " ".join(str(i) for i in range(40))
    assert pre_caption(text) == " ".join(str(i) for i in range(30))
    assert pre_caption(text, 3) == "0 1 2"
    assert pre_caption(text, None) == text


@given(st.text(), st.integers(1, 10))
def test_is_idempotent_and_within_limits(text: str, words: int) -> None:
    once = pre_caption(text, words)
    assert not set(once) & set('.!"()*#:;~\n\t')
    assert len(once.split()) <= words
    assert "  " not in once
    assert pre_caption(once, words) == once


def test_slots_number_the_texts_as_cell_texts_does() -> None:
    table = pa.table(
        {
            "many": pa.array([["one", "", None, "two"], None, [], ["..."]]),
            "single": pa.array(["three", None, "four", "five"]),
            "coded": pa.array(["a", "b", None, "\u00a0"]).dictionary_encode(),
        }
    )
    names = ["many", "single", "coded"]
    rows, slots = text_slots(table, names)
    found = list(zip(rows.tolist(), slots.tolist(), strict=True))
    expected = []
    for row, cells in enumerate(table.to_pylist()):
        texts = [text for name in names for text in cell_texts(cells[name], name == "many")]
        expected += [(row, slot) for slot, text in enumerate(texts) if pre_caption(text)]
    assert found == expected


@given(st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=20))
def test_every_text_that_pre_caption_leaves_has_a_slot(texts: list[str | None]) -> None:
    rows, _ = text_slots(pa.table({"text": pa.array(texts, pa.string())}), ["text"])
    left = [i for i, text in enumerate(texts) if text and pre_caption(text)]
    assert set(left) <= set(rows.tolist())


def test_draw_respects_weights_and_skips_empty_texts() -> None:
    rng = Random(0)
    drawn = [draw_text([["a", ""], ["b", "c"]], [9.0, 1.0], rng) for _ in range(2000)]
    assert drawn.count("a") == pytest.approx(1800, abs=80)
    assert set(drawn) == {"a", "b", "c"}
    assert draw_text([["", ""], ["b"]], [9.0, 1.0], rng) == "b"
    assert draw_text([[""], []], None, rng) == ""
    drawn = [draw_text([["a"], ["b", "c"]], None, rng) for _ in range(3000)]
    assert drawn.count("a") == pytest.approx(1000, abs=120)


@pytest.mark.parametrize("text", ["\u200b", "\u0301 \ufffd", "\x00\x07", "\ue000", "(\u00ad)"])
def test_texts_that_the_tokenizer_does_not_see_are_empty(text: str) -> None:
    assert pre_caption(text) == ""
    rows, _ = text_slots(pa.table({"text": [text, "a cat"]}), ["text"])
    assert rows.tolist() == [1]
