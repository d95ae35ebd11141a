"""Captions as text: the clean-up that each passes before it reaches a tokenizer, and the texts of a Parquet row.

One clean-up for all, because a filter trained on cleaned texts and asked about raw ones scores another distribution.
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
    """BLIP's `pre_caption` (data/utils.py): what its texts look like in training and evaluation.

    Lower case; each of `.!"()*#:;~` becomes a space; runs of white space become one space; ends are stripped; the
    first `max_words` space-separated words are kept (30 in pre-training; None keeps all). "" where nothing is left that
    BERT's tokenizer sees (it drops control, format and combining characters and U+FFFD).
    The official code leaves a lone tab or newline alone; here it becomes a space, the same to BERT's tokenizer.
    """
    text = _WHITESPACE.sub(" ", _PUNCTUATION.sub(" ", text.lower())).strip()
    text = text if max_words is None else " ".join(text.split(" ")[:max_words])
    return text if any(_seen(character) for character in text) else ""


def _seen(character: str) -> bool:
    return unicodedata.category(character)[0] not in "CMZ" and character != "\ufffd"


def draw_text(columns: list[list[str]], weights: list[float] | None, rng: Random) -> str:
    """One of a row's non-empty texts; "" if there is none.

    `columns[c]` are the row's texts in column c. All texts are as likely; with `weights` (one > 0 a column) first a
    column that has a text is drawn by weight, then one of its texts.
    """
    full = [c for c, column in enumerate(columns) if any(column)]
    if not full:
        return ""
    if weights is not None:
        full = rng.choices(full, [weights[c] for c in full])
    return rng.choice([text for c in full for text in columns[c] if text])


def cell_texts(value: str | list[str | None] | None, several: bool) -> list[str]:
    """The texts of one cell, null and empty ones as "", numbered as `text_slots` numbers them."""
    if several:
        return [text or "" for text in value or []]
    return [value] if isinstance(value, str) else [""]


def text_slots(table: pa.Table, columns: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Row and slot of every text of which `pre_caption` leaves something, by row, then slot.

    The slot numbers a row's texts over its columns, empty ones counted: a string column has one, null or not, a list
    column as many as the list is long.
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
