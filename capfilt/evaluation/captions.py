"""Caption metrics: CIDEr and BLEU-4 of pycocoevalcap's pure-Python scorers, distinct-n, mean length.

Words come from `caption_tokens` instead of Stanford's Java tokenizer. Values are on pycocoevalcap's scale: a CIDEr of
129.7 as the paper prints it (Table 1, COCO) is 1.297 here, and BLEU-4 is in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from capfilt.errors import InputError
from capfilt.evaluation.caption_tokens import tokenize, words

References = Sequence[Sequence[str]]
"""One or more true texts per image."""


@dataclass(frozen=True)
class CiderScores:
    """CIDEr of a set of captions."""

    mean: float
    """Mean over the images."""
    each: NDArray[np.float64]
    """(N,) float64 >= 0, the value of each image with the idf of all references; for a bootstrap."""


def cider(captions: Sequence[str], references: References) -> CiderScores:
    """Compute CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 5), n = 1..4 and sigma = 6 as on COCO's server.

    An n-gram's weight is the log of its rarity among the references, so the value depends on the whole set. A single
    image always scores 0.

    Args:
        captions: N texts, one per image.
        references: N lists of one or more texts.

    Returns:
        Scores of about 0 to 10; good COCO captioners reach 1.3.

    Raises:
        InputError: the lengths differ, an image has no reference, or no reference has a word.
    """
    truth, guess = _by_number(captions, references)
    mean, each = Cider().compute_score(truth, guess)
    return CiderScores(float(mean), np.asarray(each, dtype=np.float64))


def bleu4(captions: Sequence[str], references: References) -> float:
    """Compute corpus BLEU-4 (Papineni et al. 2002), with the closest reference length, in [0, 1].

    Arguments and errors are those of `cider`.
    """
    truth, guess = _by_number(captions, references)
    scores, _ = Bleu(4).compute_score(truth, guess, verbose=0)
    return float(scores[3])


def distinct(captions: Sequence[str], n: int) -> float:
    """Compute distinct-n (Li et al. 2016): different n-grams / all n-grams of all captions, in [0, 1]; 0 if none."""
    grams = [gram for caption in captions for gram in _ngrams(words(caption), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def mean_length(captions: Sequence[str]) -> float:
    """Return the mean number of words per caption, without punctuation. Raises InputError: there are no captions."""
    if not captions:
        raise InputError("mean_length of no captions")
    return float(np.mean([len(words(caption)) for caption in captions]))


def _ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _by_number(captions: Sequence[str], references: References) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return references and captions as pycocoevalcap's dicts of tokenised texts, after checking them."""
    if len(captions) != len(references) or not captions:
        raise InputError(f"one caption per image is needed; got {len(captions)} captions, {len(references)} images")
    bare = next((i for i, texts in enumerate(references) if not texts), None)
    if bare is not None:
        raise InputError(f"image {bare} has no reference text")
    truth = {i: [tokenize(text) for text in texts] for i, texts in enumerate(references)}
    if not any(text for texts in truth.values() for text in texts):
        raise InputError("no reference has a word in it")
    return truth, {i: [tokenize(caption)] for i, caption in enumerate(captions)}
