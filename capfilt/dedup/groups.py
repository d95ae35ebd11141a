"""Groups of duplicate rows, the row of each group that is kept, and the reason why every other row is removed.

A group is a connected component over all links, so A and C are in one group if both repeat B, however different A and C
are. Rows are numbered by rank, so a group's keeper is its lowest number. The union-find of `DuplicateGroups` keeps the
lowest number of every tree as its root: the root is the keeper.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from capfilt.dedup.links import Floats, Ints, Links

DUPLICATE_KINDS = ("", "semantic", "perceptual", "url_text", "exact")
"""Kinds of duplicates, the weakest first; "" for none."""


class Marks(NamedTuple):
    """Marks of N rows."""

    keeper: Ints
    """(N,) the best row of the row's group, which may be the row itself."""
    kind: NDArray[np.int64]
    """(N,) index in DUPLICATE_KINDS."""
    similarity: Floats
    """(N,) 0 .. 1."""


class DuplicateGroups:
    """Connected components, built from links piece by piece; 24 bytes per row."""

    def __init__(self, rows: int) -> None:
        self._parent = np.arange(rows)
        self._before, self._after = np.zeros(rows), np.zeros(rows)

    def add(self, links: Links, kind: str) -> None:
        """Join the two rows of each link (i < j). The order of links, and repeated links, do not matter."""
        strength = 2 * DUPLICATE_KINDS.index(kind) + links.similarity.astype(np.float64)
        np.maximum.at(self._before, links.j, strength)
        np.maximum.at(self._after, links.i, strength)
        i, j = links.i, links.j
        while len(i):
            i, j = self._roots(i), self._roots(j)
            differ = i != j
            i, j = np.minimum(i, j)[differ], np.maximum(i, j)[differ]
            np.minimum.at(self._parent, j, i)

    def marks(self) -> Marks:
        """Return every row's keeper, and the kind and similarity of its strongest link to a row of better rank.

        So the rows marked `exact` are the same as with a search for equal pixels only. In a chain, the strongest link
        may lead to another row than the keeper. A row linked only to rows of worse rank gets the strongest of those.
        Exact is stronger than url_text, then perceptual, then semantic; within a kind, the higher similarity.
        """
        strength = np.where(self._before > 0, self._before, self._after)
        kind = (strength // 2).astype(np.int64)
        return Marks(self._roots(np.arange(len(strength))), kind, (strength - 2 * kind).astype(np.float32))

    def _roots(self, rows: Ints) -> Ints:
        """Find roots with path halving, so that a chain of N rows takes log N rounds."""
        while True:
            above = self._parent[rows]
            if (above == rows).all():
                return rows
            self._parent[rows] = self._parent[above]
            rows = above
