"""Links between rows that repeat each other, and the simplest ones: equal keys.

Rows are numbers 0 .. N-1 in order of rank, best first (`rows.rank`). A search gives its links in pieces, so that two
million copies of one banner do not have to be held as their square; equal values are therefore linked as a star, all
to the first, and only different values are searched.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Keys = NDArray[np.uint64]
"""(N, 2): 128 bits a row; that two of 10^9 different values share one has a chance of 10^-21."""


class Links(NamedTuple):
    """L links: row `i[k]` and row `j[k]` repeat each other. Within one set of rows i < j."""

    i: Ints
    j: Ints
    similarity: Floats
    """0 .. 1."""

    def at(self, rows: Ints) -> "Links":
        """The same links when row k is called rows[k]."""
        a, b = rows[self.i], rows[self.j]
        return Links(np.minimum(a, b), np.maximum(a, b), self.similarity)


def links_of(i: Ints, j: Ints) -> Links:
    """Links of similarity 1."""
    return Links(i, j, np.ones(len(i), dtype=np.float32))


def keys_of(values: Iterable[bytes | None]) -> Keys:
    """(N, 2) from any bytes; equal bytes give equal keys. None gives zeros."""
    joined = b"".join(bytes(16) if v is None else hashlib.blake2b(v, digest_size=16).digest() for v in values)
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2).astype(np.uint64)


def equal(keys: Keys) -> tuple[Ints, Links]:
    """The first row of each different key, ordered by key, and a link from it to every other row of that key.

    Args:
        keys: (N,) or (N, 2).
    """
    wide = keys if keys.ndim == 2 else keys[:, None]
    order = np.lexsort(wide.T)
    ordered = wide[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = order[new]
    centres = np.repeat(firsts, np.diff(np.append(np.flatnonzero(new), len(keys))))
    return firsts, links_of(centres[~new], order[~new])


def searched(limits: NDArray[np.integer], start: int) -> Ints:
    """The query of every result of a FAISS range search; `limits`: as it returns them, `start`: number of query 0."""
    ends = limits.astype(np.int64)
    return np.repeat(np.arange(start, start + len(ends) - 1), ends[1:] - ends[:-1])


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on one thread: its sums, and so its k-means, do not depend on the machine's cores."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
