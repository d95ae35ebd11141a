"""ITC and ITM of tokenised texts, in passes of bounded size. Texts are never padded; those of one image go together."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from capfilt.models.blip.cross import image_keys, use_absorbed
from capfilt.models.blip.med import MED
from capfilt.models.blip.ragged import first_tokens

TOKENS_PER_PASS = 512
"""About how many text tokens one pass has. It bounds the activations, and the number of images with keys at once."""


def text_features(med: MED, rows: list[list[int]]) -> Tensor:
    """Embed T texts, given as token ids -> (T, E) float32, L2-normalised."""
    found = [first_tokens(med.text, rows[part]) for part in _passes([len(row) for row in rows])]
    return med.text_head(torch.cat(found)).float()


def itm_logits(med: MED, image_states: Tensor, rows: list[list[int]], images: Sequence[int]) -> Tensor:
    """Judge text t with image `images[t]`.

    The texts of one image attend to it in one pass. Images with few text tokens and images with many are in different
    passes, because their cross-attention is computed in different ways (`cross`).

    Args:
        med: with an encoder.
        image_states: (B, P + 1, D).
        rows: token ids of T texts; their first token becomes [ENC].
        images: T image indices in 0 .. B - 1.

    Returns:
        (T, 2) float32 [no match, match].
    """
    rows = [[med.config.text.enc_id, *row[1:]] for row in rows]
    texts_of: dict[int, list[int]] = {}
    for text, image in enumerate(images):
        texts_of.setdefault(image, []).append(text)
    tokens = {image: sum(len(rows[text]) for text in texts) for image, texts in texts_of.items()}
    logits = image_states.new_empty(len(rows), 2, dtype=torch.float32)
    for absorbed in (True, False):
        group = [image for image in texts_of if use_absorbed(tokens[image]) == absorbed]
        for part in _passes([tokens[image] for image in group]):
            chosen = {image: texts_of[image] for image in group[part]}
            _fill(med, logits, image_states, rows, chosen, max(tokens[image] for image in chosen))
    return logits


def _fill(
    med: MED, logits: Tensor, image_states: Tensor, rows: list[list[int]], texts_of: dict[int, list[int]], most: int
) -> None:
    """Fill in the logits of some images' texts, in one pass, or in several for a single image with very many texts.

    Args:
        med, image_states, rows: as in `itm_logits`.
        logits: (T, 2) float32, written in place.
        texts_of: image -> its texts.
        most: largest number of text tokens of an image.
    """
    keys = image_keys(med.text, image_states[list(texts_of)], most)
    texts = [text for image in texts_of.values() for text in image]
    parts = _passes([len(rows[text]) for text in texts]) if len(texts_of) == 1 else [slice(None)]
    for part in parts:
        some = [rows[text] for text in texts[part]]
        counts = [len(some)] if len(texts_of) == 1 else [len(image) for image in texts_of.values()]
        logits[texts[part]] = med.itm_head(first_tokens(med.text, some, keys, counts)).float()


def _passes(sizes: Sequence[int]) -> Iterator[slice]:
    """Divide items into slices of neighbours with at most TOKENS_PER_PASS tokens, or with one item."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > TOKENS_PER_PASS:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
