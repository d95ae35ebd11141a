"""Two trivial captioners, as baselines. A model that does not beat both has not learnt to caption.

*Constant*: one training text for every image. *Nearest*: a text of the training image whose embedding is nearest. Both
use the training set only, never the references of the evaluation.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from capfilt.errors import InputError
from capfilt.evaluation.caption_tokens import words

FloatArray = NDArray[np.float64]
Gram = tuple[str, ...]
_ORDERS = 4
_SIGMA = 6.0


class CiderIndex:
    """CIDEr-D of a caption against each of many references (one text each) at once, by an inverted index of n-grams.

    The values are those of pycocoevalcap (tested). That library computes every reference's weights again for each
    caption, 1 ms per pair: 2,000 candidates on 2,000 texts would take an hour, and take 5 s here.
    """

    def __init__(self, references: Sequence[str]) -> None:
        """Index N references, whose n-gram frequencies also give the weights."""
        grams = [_grams(text) for text in references]
        frequency = Counter(gram for each in grams for gram in each)
        self._log_n = float(np.log(len(references)))
        self._idf = {gram: self._log_n - float(np.log(count)) for gram, count in frequency.items()}
        self._length = np.array([_bigrams(each) for each in grams], dtype=np.float64)
        self._norm = np.stack([self._norms(each) for each in grams])  # (N, 4)
        holders: dict[Gram, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for row, each in enumerate(grams):
            for gram, count in each.items():
                rows, weights = holders[gram]
                rows.append(row)
                weights.append(count * self._idf[gram])
        self._holders = {gram: (np.array(rows), np.array(weights)) for gram, (rows, weights) in holders.items()}

    def scores(self, caption: str) -> FloatArray:
        """Return the CIDEr-D of `caption` against each reference, (N,) float64."""
        grams = _grams(caption)
        overlap = np.zeros(self._norm.shape)
        for gram, count in grams.items():
            if gram in self._holders:
                rows, weights = self._holders[gram]
                overlap[rows, len(gram) - 1] += np.minimum(count * self._idf[gram], weights) * weights
        scale = self._norm * self._norms(grams)
        cosine = np.divide(overlap, scale, out=np.zeros_like(overlap), where=scale > 0)
        penalty = np.exp(-((_bigrams(grams) - self._length) ** 2) / (2 * _SIGMA**2))
        result: FloatArray = 10.0 * penalty * cosine.mean(axis=1)
        return result

    def _norms(self, grams: Counter[Gram]) -> FloatArray:
        squares = np.zeros(_ORDERS)
        for gram, count in grams.items():
            squares[len(gram) - 1] += (count * self._idf.get(gram, self._log_n)) ** 2
        return np.sqrt(squares)


def constant_caption(train_texts: Sequence[str], *, seed: int = 0, candidates: int = 2000, sample: int = 2000) -> str:
    """Return the training text with the best mean CIDEr against a sample of the training texts.

    Args:
        train_texts: texts of the training set only.
        seed: for drawing the candidates and the sample.
        candidates: maximum number of texts that are compared.
        sample: maximum number of texts that each is scored against; a candidate is not scored against itself.

    Returns:
        One of `train_texts`, unchanged; the first one in case of a tie.

    Raises:
        InputError: there are no training texts.
    """
    if not train_texts:
        raise InputError("the constant baseline is chosen among training texts, and there are none")
    generator = np.random.default_rng(seed)
    judges = generator.permutation(len(train_texts))[:sample].tolist()
    rivals = sorted(generator.permutation(len(train_texts))[:candidates].tolist())
    place = {row: i for i, row in enumerate(judges)}
    index = CiderIndex([train_texts[row] for row in judges])
    means: list[float] = []
    for row in rivals:
        scores = index.scores(train_texts[row])
        own = scores[place[row]] if row in place else 0.0
        means.append(float(scores.sum() - own) / max(1, len(judges) - (row in place)))
    best: int = rivals[int(np.argmax(means))]
    return train_texts[best]


def nearest_captions(
    embeddings: NDArray[np.float32], train_embeddings: NDArray[np.float32], train_texts: Sequence[str]
) -> list[str]:
    """Return for each image the text of the training image with the highest cosine, the first one in case of a tie.

    Args:
        embeddings: (N, E) float32, not necessarily normalised.
        train_embeddings: (M, E) float32, not necessarily normalised.
        train_texts: M texts, one per training image.

    Returns:
        N texts.

    Raises:
        InputError: there is no training image, or the shapes do not fit.
    """
    if train_embeddings.shape != (len(train_texts), embeddings.shape[1]) or not train_texts:
        raise InputError(
            f"nearest_captions needs one text per training image and equal widths; got embeddings {embeddings.shape}, "
            f"train_embeddings {train_embeddings.shape}, {len(train_texts)} texts"
        )
    train = _unit(train_embeddings)
    nearest: list[str] = []
    for start in range(0, len(embeddings), 1024):
        best = (_unit(embeddings[start : start + 1024]) @ train.T).argmax(axis=1)
        nearest += [train_texts[i] for i in best.tolist()]
    return nearest


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def _grams(text: str) -> Counter[Gram]:
    tokens = words(text)
    return Counter(tuple(tokens[i : i + n]) for n in range(1, _ORDERS + 1) for i in range(len(tokens) - n + 1))


def _bigrams(grams: Counter[Gram]) -> float:
    """Return the number of bigrams, which is the length of a caption in pycocoevalcap."""
    return float(sum(count for gram, count in grams.items() if len(gram) == 2))
