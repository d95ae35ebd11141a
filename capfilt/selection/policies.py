"""Which texts are kept: pure decisions over stored scores, one shard's candidates at a time, vectorised.

A decision is a reason not to keep, or None. What is known without a score (`refused`) comes first; human texts that
are not refused are kept; the rest is for the policy of `select`, then for `max_texts_per_image`.

Scores are stored as float32, so thresholds are compared as float32: a text of score 0.9 passes a threshold of 0.9.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capfilt.config.pipeline import SelectSettings
from capfilt.store.arrays import Bools, Floats, Reasons, equal

REASONS = {
    "quarantined:...": "the row cannot be processed: image_unreadable, bomb, killed_worker, ... (of the row)",
    "rejected:...": "a rule of ingest: image_too_small, text_empty, blocked, ... (of the row)",
    "duplicate:...": "another row is kept in its place: key, exact, url_text, perceptual, semantic (of the row)",
    "contaminated": "the image repeats one of an evaluation set (of the row)",
    "no_text": "null or nothing but white space",
    "caption_failed": "the row has no text of its own and captioning it failed",
    "no_score": "the policy needs a score that is null",
    "score_failed": "likewise, because scoring the row failed",
    "below_itm_threshold": "itm is less than the threshold",
    "below_itc_threshold": "itc is less than the threshold",
    "below_both": "itm and itc are less than their thresholds (policies both, either)",
    "not_top_k": "`top_k` texts of the image rank before it (policy top_k)",
    "over_max_texts": "passed, but `max_texts_per_image` texts of the image that passed rank before it",
}
"""Every value of `candidates.reason`; `...` stands for one word of what comes after the colon."""

JUDGED = ("below_itm_threshold", "below_itc_threshold", "below_both", "not_top_k", "over_max_texts")
"""The reasons that are verdicts of the policy upon a score."""


@dataclass(frozen=True)
class Texts:
    """The n candidates of a shard, each an array (n,)."""

    image: NDArray[np.int64]
    """Position of the pairs row; equal for texts of one image."""
    origin: NDArray[np.object_]
    """web | synthetic | human."""
    sample: NDArray[np.int64]
    """Number of the caption, -1 for a row's own text."""
    itc: Floats
    """NaN where null."""
    itm: Floats
    """NaN where null."""
    refused: Reasons
    """What is known before a score is looked at, or None."""
    failed: Bools
    """Scoring the row failed."""


def decide(texts: Texts, select: SelectSettings) -> Reasons:
    """Why each text is not kept, (n,), None where it is."""
    reasons = texts.refused.copy()
    judged = equal(reasons, None) & ~equal(texts.origin, "human")
    reasons[judged] = _policy(texts, select, judged)[judged]
    reasons[equal(reasons, "no_score") & texts.failed] = "score_failed"
    if select.max_texts_per_image is not None:
        passed = equal(reasons, None)
        reasons[passed & (rank(texts, select, passed) >= select.max_texts_per_image)] = "over_max_texts"
    return reasons


def rank(texts: Texts, select: SelectSettings, among: Bools) -> NDArray[np.int64]:
    """Place of each text, from 0, among the texts of its image that are in `among`; others come after these.

    Higher score first (null last), then a row's own text before captions, then the lower sample.
    """
    score = texts.itm if select.rank_by == "itm" else texts.itc
    falling = np.where(np.isnan(score), np.inf, -score)
    order = np.lexsort((texts.sample, falling, ~among, texts.image))
    images = texts.image[order]
    first = np.searchsorted(images, images, side="left")
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - first
    return places


def _policy(texts: Texts, select: SelectSettings, judged: Bools) -> Reasons:
    """The policy's own verdicts; only those of `judged` texts mean anything."""
    itm, itc = texts.itm, texts.itc
    no_itm, no_itc = np.isnan(itm), np.isnan(itc)
    low_itm = itm < _thresholds(texts, select, "itm_threshold")
    low_itc = itc < _thresholds(texts, select, "itc_threshold")
    match select.policy:
        case "itm_threshold" | "calibrated":
            return _first((no_itm, "no_score"), (low_itm, "below_itm_threshold"))
        case "itc_threshold":
            return _first((no_itc, "no_score"), (low_itc, "below_itc_threshold"))
        case "both":
            lows = ((low_itm, "below_itm_threshold"), (low_itc, "below_itc_threshold"))
            return _first((no_itm | no_itc, "no_score"), (low_itm & low_itc, "below_both"), *lows)
        case "either":
            out_itm, out_itc = no_itm | low_itm, no_itc | low_itc
            return _first((low_itm & low_itc, "below_both"), (out_itm & out_itc, "no_score"))
        case "top_k":
            none = no_itm if select.rank_by == "itm" else no_itc
            places = rank(texts, select, judged & ~none)
            return _first((none, "no_score"), (places >= select.top_k, "not_top_k"))
        case "keep_all":
            return _first((np.zeros(len(itm), dtype=bool), ""))


def _thresholds(texts: Texts, select: SelectSettings, name: str) -> Floats:
    """The threshold of each text's origin, (n,) float32."""
    out = np.full(len(texts.origin), getattr(select, name), dtype=np.float32)
    for origin, own in select.per_origin.items():
        if getattr(own, name) is not None:
            out[equal(texts.origin, origin)] = getattr(own, name)
    return out


def _first(*cases: tuple[Bools, str]) -> Reasons:
    """For each text the word of the first case that is true of it, or None."""
    out = np.full(len(cases[0][0]), None, dtype=object)
    for true, word in reversed(cases):
        out[true] = word
    return out
