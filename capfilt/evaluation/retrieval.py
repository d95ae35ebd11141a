"""Image-text retrieval from a matrix of scores: ranks, R@k, median rank, and BLIP's ITM re-ranking.

Ties are **pessimistic**: a wrong candidate with the same score as the right one is ranked before it, so a model that
gives all pairs the same score gets R@1 = 0, not 1. If several candidates are right (several texts per image), the best
of them counts, as in the COCO protocol (Karpathy & Fei-Fei 2015) and BLIP's `train_retrieval.py: itm_eval`.

Re-ranking follows `train_retrieval.py: evaluation` of salesforce/BLIP (paper, section 5.1): the k best candidates by
ITC get the score `ITM logit of "match" + ITC similarity`, and all others are ranked after them. In the official code
these others tie at -100; here they keep their ITC order. The paper uses k = 256 for COCO and 128 for Flickr30k.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capfilt.errors import InputError

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]
ItmScorer = Callable[[IntArray, IntArray], FloatArray]
"""(P,) image indices, (P,) text indices -> (P,) logits of "match". The pairs are sorted by image."""


@dataclass(frozen=True)
class Reranked:
    """Scores after ITM re-ranking, for each direction, because the two directions have different candidates."""

    t2i: FloatArray
    """(N_img, N_txt) float64. A column ranks the images for a text: candidates by ITM + ITC, then the others by ITC."""
    i2t: FloatArray
    """(N_img, N_txt) float64. A row ranks the texts for an image in the same way."""
    pairs: int
    """Number of pairs that the ITM head judged."""


def check_scores(scores: FloatArray, image_index: IntArray) -> None:
    """Raise InputError unless `scores` (N_img, N_txt) is finite and `image_index` (N_txt,) is in 0..N_img-1."""
    if scores.ndim != 2 or image_index.shape != (scores.shape[1],):
        raise InputError(
            f"scores must be (images, texts) with one image index per text; got {scores.shape} and {image_index.shape}"
        )
    if not scores.size:
        raise InputError(f"scores of shape {scores.shape}: retrieval needs at least one image and one text")
    if image_index.min() < 0 or image_index.max() >= scores.shape[0]:
        raise InputError(f"image_index must lie in 0..{scores.shape[0] - 1}; got up to {image_index.max()}")
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(f"score of image {row} with text {column} is {scores[row, column]}; scores must be finite")


def ranks_t2i(scores: FloatArray, image_index: IntArray) -> IntArray:
    """Rank each text's image among all images. 1 is the best; ties are pessimistic.

    Args:
        scores: (N_img, N_txt) float, higher is better.
        image_index: (N_txt,) int64, the image that each text belongs to.

    Returns:
        (N_txt,) int64 in 1..N_img.

    Raises:
        InputError: the shapes do not fit, an image index is out of range, or a score is not finite.
    """
    check_scores(scores, image_index)
    right = scores[image_index, np.arange(scores.shape[1])]
    ranks: IntArray = (scores >= right).sum(axis=0, dtype=np.int64)  # counts the right image itself
    return ranks


def ranks_i2t(scores: FloatArray, image_index: IntArray) -> IntArray:
    """Rank each image's best own text among the texts of all other images. 1 is the best; ties are pessimistic.

    Arguments and errors are those of `ranks_t2i`.

    Returns:
        (M,) int64, for the M images that have a text, in the order of their indices.
    """
    check_scores(scores, image_index)
    own = np.zeros(scores.shape, dtype=bool)
    own[image_index, np.arange(scores.shape[1])] = True
    has_text = own.any(axis=1)
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    ranks: IntArray = 1 + ((scores >= best) & ~own).sum(axis=1, dtype=np.int64)
    return ranks[has_text]


def recall_at(ranks: IntArray, k: int) -> float:
    """Return R@k: the share of ranks that are <= k, in [0, 1]."""
    return float((ranks <= k).mean())


def recalls(t2i: IntArray, i2t: IntArray) -> dict[str, float]:
    """Return `t2i_r1`, `t2i_r5`, `t2i_r10`, `i2t_r1`, ... as fractions, `t2i_median_rank` and `i2t_median_rank`."""
    values: dict[str, float] = {}
    for name, ranks in (("t2i", t2i), ("i2t", i2t)):
        values |= {f"{name}_r{k}": recall_at(ranks, k) for k in (1, 5, 10)}
        values[f"{name}_median_rank"] = float(np.median(ranks))
    return values


def top_k(scores: FloatArray, k: int, axis: int) -> NDArray[np.bool_]:
    """Mark the k highest scores along `axis`, or all if there are fewer -> (N_img, N_txt). Lower indices win ties."""
    mask = np.zeros(scores.shape, dtype=bool)
    queries, chosen = (scores.T, mask.T) if axis == 0 else (scores, mask)
    for query, row in zip(queries, chosen, strict=True):  # one by one: sorting all at once takes 1 GB for COCO
        row[np.argsort(-query, kind="stable")[:k]] = True
    return mask


def rerank(
    itc: FloatArray,
    itm: ItmScorer,
    k: int = 32,
    *,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Reranked:
    """Re-rank the top k candidates of each direction by ITM, as BLIP's evaluation does.

    A pair that is a candidate in both directions is judged once.

    Args:
        itc: (N_img, N_txt) float, cosines.
        itm: judges a batch of pairs; see `ItmScorer`.
        k: candidates per query, >= 1, at most all.
        batch_size: pairs per call of `itm`, >= 1.
        progress: called after each batch with the number of pairs judged so far and the number of all pairs to judge.

    Raises:
        InputError: k or batch_size < 1, or `itm` returns another number of logits, or one that is not finite.
    """
    if k < 1 or batch_size < 1:
        raise InputError(f"k and batch_size must be at least 1; got k = {k}, batch_size = {batch_size}")
    by_text, by_image = top_k(itc, k, axis=0), top_k(itc, k, axis=1)
    images, texts = np.nonzero(by_text | by_image)  # row-major: sorted by image
    judged = np.zeros(itc.shape, dtype=np.float64)
    for start in range(0, len(images), batch_size):
        image, text = images[start : start + batch_size], texts[start : start + batch_size]
        judged[image, text] = _logits(itm, image, text)
        if progress is not None:
            progress(start + len(image), len(images))
    judged += itc
    return Reranked(_above(judged, itc, by_text, 0), _above(judged, itc, by_image, 1), len(images))


def _logits(itm: ItmScorer, image: IntArray, text: IntArray) -> FloatArray:
    logits = itm(image, text)
    if logits.shape != image.shape or not np.isfinite(logits).all():
        raise InputError(f"itm must return {len(image)} finite logits; got shape {logits.shape}")
    return logits


def _above(judged: FloatArray, itc: FloatArray, chosen: NDArray[np.bool_], axis: int) -> FloatArray:
    """Return `judged` where chosen, and elsewhere `itc`, shifted below the lowest chosen score of the same query."""
    floor = np.where(chosen, judged, np.inf).min(axis=axis, keepdims=True)
    rest = itc.astype(np.float64)
    return np.where(chosen, judged, rest - rest.max(axis=axis, keepdims=True) + floor - 1.0)
