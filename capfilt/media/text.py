"""Clean up captions before they reach a tokenizer, and pick the texts of a Parquet row.

There is one clean-up for training and scoring, because a filter trained on cleaned texts would score raw ones wrongly.
"""

import re
import unicodedata
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from capfilt.store.parquet import is_list

_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
_WHITESPACE = re.compile(r"\s+")
_SOMETHING_LEFT = r'[^.!"()*#:;~\s\pZ\pC\pM\x{FFFD}]'


def pre_caption(text: str, max_words: int | None = 30) -> str:
    """Clean a text as BLIP's `pre_caption` (data/utils.py) does for training and evaluation.

    Lower case; each of `.!"()*#:;~` becomes a space; runs of white space become one space; ends are stripped; the
    first `max_words` space-separated words are kept (30 in pre-training; None keeps all). Returns "" if nothing is left
    that BERT's tokenizer sees (it drops control, format and combining characters and U+FFFD).
    The official code keeps a lone tab or newline; here it becomes a space, which is the same for BERT's tokenizer.
    """
    text = _WHITESPACE.sub(" ", _PUNCTUATION.sub(" ", text.lower())).strip()
    text = text if max_words is None else " ".join(text.split(" ")[:max_words])
    return text if any(_seen(character) for character in text) else ""


def _seen(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CMZ" and character != "\ufffd"


def draw_text(columns: list[list[str]], weights: list[float] | None, rng: Random) -> str:
    """Draw one of a row's non-empty texts; "" if there is none.

    Args:
        columns: columns[c] are the row's texts in column c.
        weights: one > 0 per column: first a column with a text is drawn by weight, then one of its texts. None: all
            texts are equally likely.
        rng: random numbers.
    """
    full = [c for c, column in enumerate(columns) if any(column)]
    if not full:
        return ""
    if weights is not None:
        full = rng.choices(full, [weights[c] for c in full])
    return rng.choice([text for c in full for text in columns[c] if text])


def cell_texts(value: str | list[str | None] | None, several: bool) -> list[str]:
    """Return the texts of one cell, null and empty ones as "", in the order of `text_slots`."""
    if several:
        return [text or "" for text in value or []]
    return [value] if isinstance(value, str) else [""]


def text_slots(table: pa.Table, columns: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return row and slot of every text that `pre_caption` leaves non-empty, sorted by row, then slot.

    Slots number a row's texts across its columns, including empty ones: a string column has one slot, null or not; a
    list column has one per element.

    Returns:
        Two (T,) int32 arrays.
    """
    base, rows, slots = np.zeros(table.num_rows, dtype=np.int32), [], []
    for name in columns:
        values, lengths = table[name].combine_chunks(), np.ones(table.num_rows, dtype=np.int32)
        if is_list(values.type):
            lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int32)
            values = pc.list_flatten(values)
        parent = np.repeat(np.arange(table.num_rows, dtype=np.int32), lengths)
        starts = np.cumsum(lengths, dtype=np.int32) - lengths
        within = np.arange(len(parent), dtype=np.int32) - starts[parent]
        text = values.cast(pa.large_string())
        some = pc.fill_null(pc.match_substring_regex(text, _SOMETHING_LEFT), False).to_numpy(zero_copy_only=False)
        rows.append(parent[some])
        slots.append((base[parent] + within)[some])
        base += lengths
    row, slot = np.concatenate(rows), np.concatenate(slots)
    order = np.lexsort((slot, row))
    return row[order], slot[order]
