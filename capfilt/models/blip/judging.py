"""ITC and ITM of tokenised texts: passes of bounded size, texts never padded, those of one image together."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from capfilt.models.blip.cross import image_keys, use_absorbed
from capfilt.models.blip.med import MED
from capfilt.models.blip.ragged import first_tokens

TOKENS_A_PASS = 512
"""About how many text tokens one ITM or ITC pass has: bounds activations, and how many images have keys at once."""


def text_features(med: MED, rows: list[list[int]]) -> Tensor:
    """Token ids of T texts -> (T, E) float32, L2-normalised."""
    found = [first_tokens(med.text, rows[part]) for part in _passes([len(row) for row in rows])]
    return med.text_head(torch.cat(found)).float()


def itm_logits(med: MED, image_states: Tensor, rows: list[list[int]], images: Sequence[int]) -> Tensor:
    """Text t with image `images[t]` -> (T, 2) float32 [no match, match].

    The texts of one image ask it together, images of few tokens apart from those of many.

    Args:
        med: with an encoder.
        image_states: (B, P + 1, D).
        rows: token ids of T texts; their first token becomes [ENC].
        images: T numbers in 0 .. B - 1.
    """
    rows = [[med.config.text.enc_id, *row[1:]] for row in rows]
    of: dict[int, list[int]] = {}
    for text, image in enumerate(images):
        of.setdefault(image, []).append(text)
    tokens = {image: sum(len(rows[text]) for text in texts) for image, texts in of.items()}
    logits = image_states.new_empty(len(rows), 2, dtype=torch.float32)
    for group in ([i for i in of if use_absorbed(tokens[i])], [i for i in of if not use_absorbed(tokens[i])]):
        for part in _passes([tokens[image] for image in group]):
            chosen = {image: of[image] for image in group[part]}
            _fill(med, logits, image_states, rows, chosen, max(tokens[image] for image in chosen))
    return logits


def _fill(
    med: MED, logits: Tensor, image_states: Tensor, rows: list[list[int]], of: dict[int, list[int]], most: int
) -> None:
    """Fill in the logits of these images' texts, in several passes if it is one image with very many."""
    keys = image_keys(med.text, image_states[list(of)], most)
    texts = [text for image in of.values() for text in image]
    parts = _passes([len(rows[text]) for text in texts]) if len(of) == 1 else [slice(None)]
    for part in parts:
        some = [rows[text] for text in texts[part]]
        counts = [len(some)] if len(of) == 1 else [len(image) for image in of.values()]
        logits[texts[part]] = med.itm_head(first_tokens(med.text, some, keys, counts)).float()


def _passes(sizes: Sequence[int]) -> Iterator[slice]:
    """Neighbours together, up to TOKENS_A_PASS in a slice, or one alone."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > TOKENS_A_PASS:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
