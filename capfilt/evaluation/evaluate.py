"""The two evaluations of `capfilt eval`: of a judge (the filter) and of a captioner. Both return a flat JSON-able dict.

Judge (paper, section 5.1): texts are cleaned by the judge (BLIP: `pre_caption` with 30 words, as in its retrieval
test). ITC ranks all candidates, ITM re-ranks the best, and both judge each text with its own image and with another.
Captioner (paper, section 5.2): captions are compared with the texts as written, and with the baselines of `baselines`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.evaluation import captions as metrics
from capfilt.evaluation.baselines import constant_caption, nearest_captions
from capfilt.evaluation.bootstrap import bootstrap_auc, bootstrap_mean
from capfilt.evaluation.encode import ImageStates, Itm, Progress, encode, to_numpy
from capfilt.evaluation.matching import (
    KEEP_AT,
    average_precision,
    expected_calibration_error,
    kept,
    mismatch,
    reliability,
    roc_auc,
)
from capfilt.evaluation.pairs import Pairs
from capfilt.evaluation.retrieval import FloatArray, IntArray, ranks_i2t, ranks_t2i, recalls, rerank
from capfilt.models.protocols import EvaluatedCaptioner, RetrievalJudge, States, System

Result = dict[str, Any]
_SHOWN = 5
"""Examples and skipped rows in a result."""


def _silent(what: str, done: int, total: int) -> None:
    """Do not report progress."""


@torch.inference_mode()
def evaluate_judge(
    model: RetrievalJudge,
    pairs: Pairs,
    *,
    rerank_k: int = 32,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = _silent,
) -> Result:
    """Measure a judge: retrieval, matched against mismatched texts, and calibration.

    Args:
        model: with the role "judge".
        pairs: images and their texts; at least two images, none with more than half of the texts.
        rerank_k: candidates per query that ITM re-ranks (paper: 256 for COCO, 128 for Flickr30k).
        seed: for drawing the mismatched texts, and for the bootstrap.
        batch_size: images, or (image, text) pairs, per call of the model.
        progress: see `Progress`.

    Returns:
        `n` (images), `n_texts`; `{t2i,i2t}_r{1,5,10}` and `{t2i,i2t}_median_rank` by ITC, and re-ranked with the suffix
        `_itm`; `{itc,itm}_{auc,ap}`, `kept_matched`, `kept_mismatched`, `ece`, `reliability`. For recalls, AUCs and
        kept shares also `<key>_ci`, the 95 % interval [low, high]. `rerank_k`, `rerank_pairs`, `seed`,
        `skipped_images`, `skipped_texts`, `skipped` (the first few). Recalls and shares are fractions.

    Raises:
        ConfigError: the model is not a judge, or does not have the methods of `protocols.RetrievalJudge`.
        InputError: there are too few images, or a score is not finite.
    """
    model.card.require("judge")
    _require_methods(model, "embed", "embed_texts", "itm_logits")
    texts = [model.clean(text) for text in pairs.texts]
    other = mismatch(len(texts), pairs.image_index.tolist(), seed)
    states = ImageStates(model, pairs, batch_size)
    itc = _itc(model, states, texts, batch_size, progress)
    itm = Itm(model, states, texts)
    return {
        "n": len(pairs.images),
        "n_texts": len(texts),
        **_retrieval(itc, itm, pairs.image_index, rerank_k, batch_size, seed, progress),
        **_matching(itc, itm, pairs.image_index, other, batch_size, seed, progress),
        "seed": seed,
        **_skipped(pairs),
    }


@torch.inference_mode()
def evaluate_captioner(
    model: EvaluatedCaptioner,
    pairs: Pairs,
    train_pairs: Pairs,
    *,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = _silent,
) -> Result:
    """Measure a captioner: its captions and those of the two baselines against the references.

    The baselines are one constant caption, and a text of the nearest training image. The nearest image is found by the
    model's `image_features` (BLIP: the ITC embedding, or the mean over the patches if there is no encoder half).

    Args:
        model: with the role "captioner"; its `decoding` is used (paper: beam search, 3 beams, 5 to 20 tokens).
        pairs: images to caption, and their texts as references.
        train_pairs: training data of the baselines, which should contain no image of `pairs`.
        seed, batch_size, progress: as in `evaluate_judge`.

    Returns:
        `n` (images), `n_train`; `cider` and `bleu4`, also with the suffixes `_constant` and `_nearest`; `cider_ci`,
        `cider_constant_ci` and `cider_nearest_ci`, the 95 % intervals [low, high]; `distinct1`, `distinct2`,
        `mean_length` (words); `constant` (the constant caption), `examples` (the first few: uid, caption, references,
        nearest); `seed`, `skipped_images`, `skipped_texts`, `skipped` (the first few).

    Raises:
        ConfigError: the model is not a captioner, or does not have the methods of `protocols.EvaluatedCaptioner`.
        InputError: there are no pairs, or no reference has a word.
    """
    model.card.require("captioner")
    _require_methods(model, "measured", "image_features")
    references = pairs.references
    constant = constant_caption(train_pairs.texts, seed=seed)
    answers = {
        "": _captions(model, pairs, batch_size, progress),
        "_constant": [constant] * len(references),
        "_nearest": _nearest(model, pairs, train_pairs, batch_size, progress),
    }
    result: Result = {"n": len(references), "n_train": len(train_pairs.images)}
    for name, texts in answers.items():
        scores = metrics.cider(texts, references)
        result |= {f"cider{name}": scores.mean, f"cider{name}_ci": bootstrap_mean(scores.each, seed=seed)}
        result[f"bleu4{name}"] = metrics.bleu4(texts, references)
    own = answers[""]
    result |= {f"distinct{n}": metrics.distinct(own, n) for n in (1, 2)}
    examples = zip(pairs.image_ids[:_SHOWN], own, references, answers["_nearest"], strict=False)
    names = ("uid", "caption", "references", "nearest")
    return {
        **result,
        "mean_length": metrics.mean_length(own),
        "constant": constant,
        "examples": [dict(zip(names, example, strict=True)) for example in examples],
        "seed": seed,
        **_skipped(pairs),
    }


def _require_methods(model: System, *names: str) -> None:
    """Raise ConfigError if a third party's system does not have a method that its measurement calls."""
    missing = [name for name in names if not hasattr(model, name)]
    if missing:
        raise ConfigError(
            f"model {model.card.name!r}: its system {model.card.system!r} cannot be measured: it has no method "
            f"{' or '.join(missing)}"
        )


def _itc(
    model: RetrievalJudge, states: ImageStates, texts: list[str], batch_size: int, progress: Progress
) -> FloatArray:
    """Return the cosines of all images with all texts, (N_img, N_txt) float32."""
    images = _features(model.embed, states, progress)
    parts = []
    for start in range(0, len(texts), batch_size):
        parts.append(to_numpy(model.embed_texts(texts[start : start + batch_size])))
        progress("texts", min(start + batch_size, len(texts)), len(texts))
    return images @ np.concatenate(parts).T


def _features(of: Callable[[States], Tensor], states: ImageStates, progress: Progress) -> NDArray[np.float32]:
    """Apply `of` to the states of each block -> (N, F) float32."""
    parts: list[NDArray[np.float32]] = []
    for done, block in enumerate(states, start=1):
        parts.append(to_numpy(of(block)))
        progress("images", done, len(states))
    return np.concatenate(parts)


def _retrieval(
    itc: FloatArray, itm: Itm, own: IntArray, k: int, batch_size: int, seed: int, progress: Progress
) -> Result:
    reranked = rerank(
        itc,
        lambda images, texts: itm(images, texts)[:, 1],
        k,
        batch_size=batch_size,
        progress=lambda done, total: progress("re-ranking", done, total),
    )
    result: Result = {}
    for suffix, t2i, i2t in (("", itc, itc), ("_itm", reranked.t2i, reranked.i2t)):
        ranks = {"t2i": ranks_t2i(t2i, own), "i2t": ranks_i2t(i2t, own)}
        result |= {name + suffix: value for name, value in recalls(ranks["t2i"], ranks["i2t"]).items()}
        for name, each in ranks.items():
            for at in (1, 5, 10):
                result[f"{name}_r{at}{suffix}_ci"] = bootstrap_mean(each <= at, seed=seed)
    return result | {"rerank_k": k, "rerank_pairs": reranked.pairs}


def _matching(
    itc: FloatArray, itm: Itm, own: IntArray, other: IntArray, batch_size: int, seed: int, progress: Progress
) -> Result:
    rows = np.arange(len(own))
    cosine = itc[own, rows], itc[own, other]
    matched, mismatched = (_probability(itm, own, texts, batch_size, progress) for texts in (rows, other))
    table = reliability(matched, mismatched)
    result: Result = {}
    for name, (high, low) in {"itc": cosine, "itm": (matched, mismatched)}.items():
        result |= {f"{name}_auc": roc_auc(high, low), f"{name}_ap": average_precision(high, low)}
        result[f"{name}_auc_ci"] = bootstrap_auc(high, low, seed=seed)
    for name, p in {"kept_matched": matched, "kept_mismatched": mismatched}.items():
        result |= {name: kept(p), f"{name}_ci": bootstrap_mean(p >= KEEP_AT, seed=seed)}
    return result | {"ece": expected_calibration_error(table), "reliability": table}


def _probability(
    itm: Itm, images: IntArray, texts: IntArray, batch_size: int, progress: Progress
) -> NDArray[np.float64]:
    """Return the softmax P(match) of P pairs, (P,) float64; `images` (P,) ascending."""
    parts = []
    for start in range(0, len(images), batch_size):
        logits = itm(images[start : start + batch_size], texts[start : start + batch_size]).astype(np.float64)
        parts.append(1.0 / (1.0 + np.exp(np.clip(logits[:, 0] - logits[:, 1], -700, 700))))
        progress("matching", min(start + batch_size, len(images)), len(images))
    return np.concatenate(parts)


def _captions(model: EvaluatedCaptioner, pairs: Pairs, batch_size: int, progress: Progress) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(pairs.images), batch_size):
        uids = pairs.image_ids[start : start + batch_size]
        states = encode(model, pairs, range(start, start + len(uids)))
        texts += [captions[0].text for captions in model.captions(states, uids, [0])]
        progress("captions", len(texts), len(pairs.images))
    return texts


def _nearest(
    model: EvaluatedCaptioner, pairs: Pairs, train: Pairs, batch_size: int, progress: Progress
) -> Sequence[str]:
    own, other = (
        _features(model.image_features, ImageStates(model, part, batch_size, 0), progress) for part in (pairs, train)
    )
    return nearest_captions(own, other, [texts[0] for texts in train.references])


def _skipped(pairs: Pairs) -> Result:
    return {
        "skipped_images": len(pairs.skipped),
        "skipped_texts": pairs.empty_texts,
        "skipped": [str(row) for row in pairs.skipped[:_SHOWN]],
    }
