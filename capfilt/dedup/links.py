"""Links between duplicate rows, and the simplest search: equal keys.

Rows are numbers 0 .. N-1 in order of rank, best first (`rows.ranked`). A search yields its links in pieces. Equal
values are linked as a star, all to the first, and only different values are searched, so that two million copies of one
banner do not give their square of links.
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
"""(N, 2) 128 bits per row; the chance that two of 10^9 different values have the same key is 10^-21."""


class Links(NamedTuple):
    """L links: rows `i[k]` and `j[k]` are duplicates. Within one set of rows, i < j."""

    i: Ints
    j: Ints
    similarity: Floats
    """(L,) 0 .. 1."""

    def at(self, rows: Ints) -> "Links":
        """Return the same links with row k renumbered to rows[k]."""
        a, b = rows[self.i], rows[self.j]
        return Links(np.minimum(a, b), np.maximum(a, b), self.similarity)


def links_of(i: Ints, j: Ints) -> Links:
    """Return links of similarity 1."""
    return Links(i, j, np.ones(len(i), dtype=np.float32))


def keys_of(values: Iterable[bytes | None]) -> Keys:
    """Hash values to keys (N, 2). Equal bytes give equal keys; None gives zeros."""
    joined = b"".join(bytes(16) if v is None else hashlib.blake2b(v, digest_size=16).digest() for v in values)
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2).astype(np.uint64)


def equal(keys: Keys) -> tuple[Ints, Links]:
    """Return the first row of each different key, ordered by key, and links from it to the other rows of that key.

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
    """Return the query of every result of a FAISS range search.

    Args:
        limits: as FAISS returns them.
        start: number of the first query.
    """
    ends = limits.astype(np.int64)
    return np.repeat(np.arange(start, start + len(ends) - 1), ends[1:] - ends[:-1])


@contextmanager
def one_thread() -> Iterator[None]:
    """Run FAISS on one thread, so that its sums, and k-means, do not depend on the number of cores; then restore."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
