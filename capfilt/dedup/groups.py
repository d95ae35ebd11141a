"""Groups of rows that repeat each other, the row of each that is kept, and why each other row goes.

A group is a connected component over all links, so A and C are in one group when both repeat B, however far they are
from each other. Rows are numbered by rank, so a group's keeper is its lowest number, and the union-find of `Groups`
lets every tree grow below its lowest number: the root is the keeper.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from capfilt.dedup.links import Floats, Ints, Links

KINDS = ("", "semantic", "perceptual", "url_text", "exact")
"""Reasons, the weakest first; "" for none."""


class Marks(NamedTuple):
    """Of N rows."""

    keeper: Ints
    """The best row of its group; itself where it is that."""
    kind: NDArray[np.int64]
    """Place in KINDS."""
    similarity: Floats


class Groups:
    """Takes links piece by piece; 24 bytes a row."""

    def __init__(self, rows: int) -> None:
        self._parent = np.arange(rows)
        self._before, self._after = np.zeros(rows), np.zeros(rows)

    def add(self, links: Links, kind: str) -> None:
        """Join the two rows of each link (i < j). Their order, and a link given twice, change nothing."""
        strength = 2 * KINDS.index(kind) + links.similarity.astype(np.float64)
        np.maximum.at(self._before, links.j, strength)
        np.maximum.at(self._after, links.i, strength)
        i, j = links.i, links.j
        while len(i):
            i, j = self._roots(i), self._roots(j)
            apart = i != j
            i, j = np.minimum(i, j)[apart], np.maximum(i, j)[apart]
            np.minimum.at(self._parent, j, i)

    def marks(self) -> Marks:
        """Every row's keeper, and the kind and similarity of its strongest link to a row that ranks before it.

        So `exact` is what finding equal pixels alone would mark. The link is the row's own: in a chain it may lead to
        another row than the keeper, and a row linked only to rows that rank after it gets the strongest of those.
        Exact is stronger than url_text, then perceptual, then semantic; of one kind the higher similarity.
        """
        strength = np.where(self._before > 0, self._before, self._after)
        kind = (strength // 2).astype(np.int64)
        return Marks(self._roots(np.arange(len(strength))), kind, (strength - 2 * kind).astype(np.float32))

    def _roots(self, rows: Ints) -> Ints:
        """Halves the paths on its way, so that a chain of N rows takes log N rounds."""
        while True:
            above = self._parent[rows]
            if (above == rows).all():
                return rows
            self._parent[rows] = self._parent[above]
            rows = above
