"""Matched against mismatched texts: AUC, average precision, the filter's decision, calibration.

The filter of CapFilt keeps a text if softmax(ITM)[match] >= 0.5 (paper, section 3.3; authors in BLIP issues 46 and 54);
see `kept`. This threshold is for probabilities only, because the ITC cosine of a matching text may be below 0.5.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from capfilt.errors import InputError

KEEP_AT = 0.5
"""The paper's threshold on P(match)."""

FloatArray = NDArray[np.float64]
ReliabilityBin = dict[str, float | int | None]


def mismatch(n: int, image_ids: Sequence[Hashable], seed: int = 0) -> NDArray[np.int64]:
    """Draw for each of n rows a row of another image: a permutation p with image_ids[p[i]] != image_ids[i] for all i.

    The rows are arranged in a circle, in random order but with the rows of one image next to each other. Each row takes
    the text s places further, with s drawn from [m, n - m], where m is the largest number of rows of one image. That
    text always belongs to another image.

    Args:
        n: number of rows.
        image_ids: n ids; rows with equal ids are one image.
        seed: for the drawing.

    Returns:
        p, (n,) int64.

    Raises:
        InputError: n is not the number of ids, or no such p exists because one image has more than half of the rows.
    """
    if n != len(image_ids) or n < 1:
        raise InputError(f"mismatch needs one image id per row; got n = {n} and {len(image_ids)} ids")
    (common, largest), *_ = Counter(image_ids).most_common(1)
    if 2 * largest > n:
        raise InputError(f"image {common!r} has {largest} of {n} texts: too many to give each a text of another image")
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(n)
    place: dict[Hashable, int] = {}
    for row in shuffled.tolist():
        place.setdefault(image_ids[row], len(place))
    circle = np.array(sorted(shuffled.tolist(), key=lambda row: place[image_ids[row]]), dtype=np.int64)
    answer = np.empty(n, dtype=np.int64)
    answer[circle] = np.roll(circle, -int(generator.integers(largest, n - largest, endpoint=True)))
    return answer


def roc_auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Return P(a positive scores above a negative), ties counted as one half: Mann-Whitney U / (P * N), in [0, 1].

    Args:
        positives: (P,) scores.
        negatives: (N,) scores.

    Raises:
        InputError: one of them is empty or has a number that is not finite.
    """
    high, low = _scores(positives, "positives"), np.sort(_scores(negatives, "negatives"))
    wins = np.searchsorted(low, high, side="left") + np.searchsorted(low, high, side="right")
    return float(wins.sum() / (2 * len(high) * len(low)))


def average_precision(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Return the sum over thresholds of (recall gained) * precision, in [0, 1].

    Equal scores have one threshold, as in scikit-learn. Arguments and errors are those of `roc_auc`.
    """
    high, low = _scores(positives, "positives"), _scores(negatives, "negatives")
    thresholds = np.unique(np.concatenate([high, low]))[::-1]
    hits = len(high) - np.searchsorted(np.sort(high), thresholds, side="left")
    alarms = len(low) - np.searchsorted(np.sort(low), thresholds, side="left")
    return float((np.diff(hits, prepend=0) * hits / (hits + alarms)).sum() / len(high))


def kept(probabilities: ArrayLike, threshold: float = KEEP_AT) -> float:
    """Return the share of texts that the filter keeps, in [0, 1].

    Args:
        probabilities: (N,) softmax P(match), in [0, 1].
        threshold: smallest probability that is kept.

    Raises:
        InputError: as `roc_auc`, or a value outside [0, 1].
    """
    return float((_probabilities(probabilities) >= threshold).mean())


def reliability(positives: ArrayLike, negatives: ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Compare predicted and observed shares of matches, in equal bins of P(match) over all pairs.

    A bin contains low <= P < high, the last one also P = 1. The observed share depends on the composition of the test:
    with as many mismatched as matched texts, half of all pairs match.

    Args:
        positives: (P,) softmax P(match) of matched pairs, in [0, 1].
        negatives: (N,) softmax P(match) of mismatched pairs, in [0, 1].
        bins: their number.

    Returns:
        A dict per bin: low, high, count, predicted (mean P) and observed (share of matches), which are None in an empty
        bin.

    Raises:
        InputError: as `roc_auc`, or a value outside [0, 1].
    """
    right, wrong = _probabilities(positives), _probabilities(negatives)
    p = np.concatenate([right, wrong])
    match = np.arange(len(p)) < len(right)
    bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    table: list[ReliabilityBin] = []
    for j in range(bins):
        inside = bin_of == j
        count = int(inside.sum())
        predicted = float(p[inside].mean()) if count else None
        observed = float(match[inside].mean()) if count else None
        table.append(
            {"low": j / bins, "high": (j + 1) / bins, "count": count, "predicted": predicted, "observed": observed}
        )
    return table


def expected_calibration_error(table: Sequence[ReliabilityBin]) -> float:
    """Return the mean over pairs of |predicted - observed| of their bin (Guo et al. 2017, equation 5), in [0, 1].

    Args:
        table: as `reliability` returns it, with at least one pair.
    """
    total = sum(row["count"] or 0 for row in table)
    gaps = ((row["count"] or 0) * abs((row["predicted"] or 0.0) - (row["observed"] or 0.0)) for row in table)
    return float(sum(gaps) / total)


def _scores(values: ArrayLike, name: str) -> FloatArray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise InputError(f"{name} must be one or more finite numbers; got shape {scores.shape}")
    return scores


def _probabilities(values: ArrayLike) -> FloatArray:
    p = _scores(values, "probabilities")
    if p.min() < 0 or p.max() > 1:
        raise InputError(f"probabilities must lie in [0, 1]; got {p.min()} to {p.max()} (logits or cosines?)")
    return p
