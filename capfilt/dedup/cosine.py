"""Embeddings within a cosine of each other: FAISS proposes pairs, and an exact sum decides.

Below 50,000 different vectors FAISS compares all pairs (`IndexFlatIP`, 51 s for 50,000 vectors of 256 on one core).
Above, it searches the 8 nearest of 2 sqrt(N) k-means cells (`IndexIVFScalarQuantizer`, half floats as stored): 3 s for
the same 50,000, with all of the 2,500 pairs of cosine >= 0.95 that the flat index finds. A pair in cells far from each
other is missed. HNSW is not used because its range search aborts the process.

FAISS's sums differ in their last bits with batch and processor. So it searches with a margin, and every pair's cosine
is then computed in double precision from the stored half floats and rounded to float32: below 50,000 vectors the result
equals brute force. Vectors are first sorted by a digest of their bytes; k-means, seeded and on one thread, then gives
the same cells for any order of the rows.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from capfilt.dedup.links import Floats, Ints, Links, Mask, equal, keys_of, one_thread, searched

Vectors = NDArray[np.float16]
ALL_PAIRS = 50_000
"""Fewer vectors than this are all compared with each other."""
PROBES = 8
"""Cells searched per vector."""
MARGIN = 0.001
"""Largest error of FAISS's cosine; rounding to half floats is 2^-11, 0.0005."""
_QUERIES = 256
"""Vectors searched at once: at most 256 * N results are held."""
_CHECKED = 16_384
"""Pairs whose cosine is computed at once: 67 MB for vectors of 256."""


def usable(vectors: Vectors) -> Mask:
    """(N,) True where a vector has a direction: finite and not zero."""
    return np.concatenate([np.zeros(0, dtype=bool), *map(_usable, _pieces(vectors))])


def links(vectors: Vectors, min_similarity: float) -> Iterator[Links]:
    """Yield links between vectors with cosine >= min_similarity, most of them twice; similarity is the cosine.

    Args:
        vectors: (N, D) in order of rank, all `usable`; need not be of length 1. Rows of one vector are linked to the
            first of them, and only it to other vectors.
        min_similarity: 0 .. 1.
    """
    firsts, stars = equal(keys_of(vector.tobytes() for vector in vectors))
    yield stars
    index = _index(vectors, firsts)
    for i, j in _search(index, vectors, firsts, min_similarity - MARGIN):
        other = i != j
        a, b = firsts[i[other]], firsts[j[other]]
        yield from _checked(vectors, np.minimum(a, b), vectors, np.maximum(a, b), min_similarity)


def matches(vectors: Vectors, others: Vectors, min_similarity: float) -> Iterator[Links]:
    """Yield links between `vectors` (i) and `others` (j) with cosine >= min_similarity; all must be `usable`."""
    index = faiss.IndexFlatIP(others.shape[1])
    _fill(index, others, np.arange(len(others)))
    for i, j in _search(index, vectors, np.arange(len(vectors)), min_similarity - MARGIN):
        yield from _checked(vectors, i, others, j, min_similarity)


def cosine(a: Vectors, b: Vectors) -> Floats:
    """(K, D) and (K, D) -> (K,) cosines, summed in double precision."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.sqrt((x * x).sum(axis=1)) * np.sqrt((y * y).sum(axis=1))
    return np.asarray(np.clip((x * y).sum(axis=1) / lengths, -1, 1), dtype=np.float32)


def _checked(a: Vectors, i: Ints, b: Vectors, j: Ints, min_similarity: float) -> Iterator[Links]:
    for start in range(0, len(i), _CHECKED):
        left, right = i[start : start + _CHECKED], j[start : start + _CHECKED]
        found = cosine(a[left], b[right])
        near = found >= np.float32(min_similarity)
        yield Links(left[near], right[near], found[near])


def _index(vectors: Vectors, rows: Ints) -> faiss.Index:
    """The index for this number of rows: all pairs, or k-means cells."""
    dim = vectors.shape[1]
    few = len(rows) < ALL_PAIRS
    index = faiss.IndexFlatIP(dim) if few else _cells(vectors, rows, 2 * int(len(rows) ** 0.5))
    _fill(index, vectors, rows)
    return index


def _cells(vectors: Vectors, rows: Ints, count: int) -> faiss.Index:
    """`count` cells by k-means on 64 vectors per cell, evenly spaced."""
    dim = vectors.shape[1]
    half = faiss.ScalarQuantizer.QT_fp16
    quantizer = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, count, half, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.spherical, index.nprobe = 1234, 10, True, PROBES
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), 64 * count)).astype(np.int64)]
    with one_thread():
        index.train(_unit(vectors[sample]))
    return index


def _fill(index: faiss.Index, vectors: Vectors, rows: Ints) -> None:
    for part in _pieces(rows):
        with one_thread():
            index.add(_unit(vectors[part]))


def _search(index: faiss.Index, vectors: Vectors, rows: Ints, radius: float) -> Iterator[tuple[Ints, Ints]]:
    """Yield positions in `rows` and in the index; all results of a position are in one piece."""
    for start in range(0, len(rows), _QUERIES):
        with one_thread():
            limits, _, found = index.range_search(_unit(vectors[rows[start : start + _QUERIES]]), radius)
        yield searched(limits, start), found.astype(np.int64)


def _pieces(array: NDArray[Any], size: int = 16_384) -> Iterator[NDArray[Any]]:
    return (array[start : start + size] for start in range(0, len(array), size))


def _usable(vectors: Vectors) -> Mask:
    return np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))


def _unit(vectors: Vectors) -> Floats:
    """float32 of length 1, contiguous."""
    wide = vectors.astype(np.float32)
    return np.ascontiguousarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))
