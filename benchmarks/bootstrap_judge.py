"""Use and test the models of the experiment: caption images, judge texts, measure retrieval and CIDEr."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.bootstrap_model import Images, Pair
from capfilt.evaluation.captions import cider
from capfilt.evaluation.retrieval import ranks_i2t, ranks_t2i, recalls
from capfilt.media.text import pre_caption
from capfilt.models.blip import Blip, Decoding
from capfilt.training.objectives.blip.momentum import features

NUCLEUS = Decoding(
    method="nucleus", top_p=0.9, temperature=0.4, repetition_penalty=1.1, min_length=6, max_length=20, prompt=""
)
BEAM = Decoding(method="beam", num_beams=3, repetition_penalty=1.1, min_length=6, max_length=20, prompt="")
_BATCH = 64


def caption(
    model: Blip, images: Images, rows: Sequence[int], decoding: Decoding, samples: Sequence[int]
) -> list[list[str]]:
    """Generate one prepared caption per row and sample number; "" for an empty caption."""
    model.decoding = decoding
    found: list[list[str]] = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        drawn = model.captions(_states(model, images, part), [str(row) for row in part], samples)
        found += [[pre_caption(one.text) for one in row] for row in drawn]
    return found


def cosines(model: Blip, images: Images, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Return ITC cosines, (len(pairs),); -1 for an empty text."""

    def cosine(rows: Sequence[int], texts: Sequence[str]) -> Tensor:
        image, text = _features(model, images, rows, texts)
        return (image * text).sum(-1)

    return _judged(pairs, -1.0, cosine)


def matches(model: Blip, images: Images, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Return P(match) of ITM, (len(pairs),); 0 for an empty text."""

    def match(rows: Sequence[int], texts: Sequence[str]) -> Tensor:
        return model.itm_logits(_states(model, images, rows), texts, range(len(rows))).softmax(-1)[:, 1]

    return _judged(pairs, 0.0, match)


def _judged(
    pairs: Sequence[Pair], nothing: float, judge: Callable[[Sequence[int], Sequence[str]], Tensor]
) -> NDArray[np.float64]:
    found = np.full(len(pairs), nothing)
    some = [i for i, (_, text) in enumerate(pairs) if text]
    for start in range(0, len(some), _BATCH):
        part = some[start : start + _BATCH]
        found[part] = judge(*zip(*(pairs[i] for i in part), strict=True)).double().numpy()
    return found


def test(model: Blip, images: Images, rows: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """Measure retrieval by ITC with one text per image, and CIDEr of beam-search captions; also per image."""
    image, text = _features(model, images, rows, texts)
    scores = (image @ text.T).double().numpy()
    index = np.arange(len(rows), dtype=np.int64)
    t2i, i2t = ranks_t2i(scores, index), ranks_i2t(scores, index)
    said = [row[0] for row in caption(model, images, rows, BEAM, [0])]
    found = cider(said, [[text] for text in texts])
    return {
        **recalls(t2i, i2t),
        "cider": found.mean,
        "t2i_ranks": t2i.tolist(),
        "i2t_ranks": i2t.tolist(),
        "cider_each": found.each.tolist(),
        "captions": said[:8],
    }


@torch.inference_mode()
def _features(model: Blip, images: Images, rows: Sequence[int], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return ITC features (B, E) of images and of texts."""
    return features(model.med, _states(model, images, rows), *model.tokenizer.batch(list(texts)))


@torch.inference_mode()
def _states(model: Blip, images: Images, rows: Sequence[int]) -> Tensor:
    return model.encode_images(images.take(rows))
