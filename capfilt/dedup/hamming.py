"""Perceptual hashes within a Hamming distance of each other, found exactly at any size.

Below 50,000 different hashes FAISS compares all pairs (`IndexBinaryFlat`, 1.3 s for 50,000 on one core). Above, for
distances up to 7, the 64 bits are split into distance + 2 bands. Two hashes that differ in `distance` bits agree in at
least two bands, so only hashes that agree in two bands are compared. Distance 4, one core, all exact: 200,000 hashes
take 0.3 s this way, 23 s by `IndexBinaryFlat`, 28 s by `IndexBinaryMultiHash` (4 x 16 bits); a million take 2 s.
Distance 7: 200,000 take 1.4 s. (The measured hashes were not uniform: each bit was set with a probability of 0.5 +-
0.15.) Beyond 7, two bands have too few bits, so FAISS compares all pairs: 10 minutes for a million.

A plain or striped image has almost no coefficient off the median, and its hash collides with all others of its kind:
every plain image gives 8000000000000000. An image with structure sets 32 of the 64 bits, because of the median. A hash
with fewer than 16 bits does not identify its image and gets no link.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise

import faiss
import numpy as np
from numpy.typing import NDArray

from capfilt.dedup.links import Links, Mask, equal, one_thread, searched

Codes = NDArray[np.uint64]
ALL_PAIRS = 50_000
"""Below this number of hashes, all pairs are compared."""
LAST_BANDED = 7
"""Largest distance, in bits, for which bands are faster."""
LEAST_BITS = 16
"""Fewest set bits of a hash that identifies its image."""
_QUERIES = 1024
"""Hashes searched at once: at most 1024 * N results are held."""


def structured(codes: Codes) -> Mask:
    """(N,) True where a hash identifies its image."""
    return np.asarray(np.bitwise_count(codes) >= LEAST_BITS)


def links(codes: Codes, max_distance: int) -> Iterator[Links]:
    """Yield links between `structured` hashes within `max_distance` bits; similarity is 1 - distance / 64.

    Args:
        codes: (N,) in order of rank. Rows with the same hash are linked to the first of them, and only that one to rows
            with other hashes.
        max_distance: bits, 0 .. 32.
    """
    rows = np.flatnonzero(structured(codes))
    firsts, stars = equal(codes[rows])
    yield stars.at(rows)
    if max_distance == 0:
        return
    found = rows[firsts]
    banded = len(found) >= ALL_PAIRS and max_distance <= LAST_BANDED
    for piece in (_by_bands if banded else _by_all)(codes[found], max_distance):
        yield piece.at(found)


def matches(codes: Codes, others: Codes, max_distance: int) -> Iterator[Links]:
    """Yield links between `codes` (i) and `others` (j), both `structured`; all links of an i are in one piece."""
    rows, there = np.flatnonzero(structured(codes)), np.flatnonzero(structured(others))
    for i, j, similarity in _search(codes[rows], others[there], max_distance):
        yield Links(rows[i], there[j], similarity)


def _by_all(codes: Codes, max_distance: int) -> Iterator[Links]:
    for i, j, similarity in _search(codes, codes, max_distance):
        once = i < j
        yield Links(i[once], j[once], similarity[once])


def _search(codes: Codes, others: Codes, max_distance: int) -> Iterator[Links]:
    index = faiss.IndexBinaryFlat(64)
    index.add(_packed(others))
    for start in range(0, len(codes), _QUERIES):
        with one_thread():
            limits, distances, found = index.range_search(_packed(codes[start : start + _QUERIES]), max_distance + 1)
        yield Links(searched(limits, start), found.astype(np.int64), _similarity(distances))


def _by_bands(codes: Codes, max_distance: int) -> Iterator[Links]:
    """Yield each pair once: for the first two bands in which it agrees."""
    masks = [a | b for a, b in combinations(_bands(max_distance + 2), 2)]
    for number, mask in enumerate(masks):
        for links, differ in _agreeing(codes, mask, max_distance):
            once = np.ones(len(differ), dtype=bool)
            for earlier in masks[:number]:
                once &= (differ & earlier) != 0
            yield Links(links.i[once], links.j[once], links.similarity[once])


def _bands(count: int) -> list[np.uint64]:
    """Masks that split 64 bits into `count` runs of nearly equal length."""
    edges = [64 * k // count for k in range(count + 1)]
    return [np.uint64((1 << stop) - (1 << start)) for start, stop in pairwise(edges)]


def _agreeing(codes: Codes, mask: np.uint64, max_distance: int) -> Iterator[tuple[Links, Codes]]:
    """Yield pairs within the distance that agree under the mask, and the bits in which they differ; at most N at once.

    Hashes are sorted by the masked bits; each is compared with the next one, then with the one after, and so on.
    """
    order = np.argsort(codes & mask)
    ordered = codes[order]
    step, left = 1, np.arange(len(codes) - 1)
    while len(left := left[left + step < len(codes)]):
        differ = ordered[left] ^ ordered[left + step]
        agree = (differ & mask) == 0
        left, differ = left[agree], differ[agree]
        distances = np.bitwise_count(differ)
        near = np.flatnonzero(distances <= max_distance)
        if len(near):
            i, j = order[left[near]], order[left[near] + step]
            yield Links(i, j, _similarity(distances[near])), differ[near]
        step += 1


def _packed(codes: Codes) -> NDArray[np.uint8]:
    return np.ascontiguousarray(codes).view(np.uint8).reshape(-1, 8)


def _similarity(distances: NDArray[np.integer]) -> NDArray[np.float32]:
    return (1 - distances.astype(np.float32) / 64).astype(np.float32)
