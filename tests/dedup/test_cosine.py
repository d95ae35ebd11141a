"""Cosine searches against brute force, small and large."""

from collections.abc import Iterable

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.dedup import cosine
from capfilt.dedup.links import Links

Pairs = dict[tuple[int, int], float]
TIES = st.lists(
    st.sampled_from([(5, 0, 0), (3, 4, 0), (4, 3, 0), (0, 5, 0), (3, 0, 4), (-5, 0, 0), (6, 8, 0)]), max_size=9
)
"""Vectors of whole length: cosines of 0, 0.36, 0.48, 0.6, 0.8, 0.96 and 1, exactly at the thresholds below."""


def found(pieces: Iterable[Links]) -> Pairs:
    rows = [row for piece in pieces for row in zip(*(column.tolist() for column in piece), strict=True)]
    assert all(i < j for i, j, _ in rows)
    return {(i, j): similarity for i, j, similarity in rows}


def brute(a: cosine.Vectors, b: cosine.Vectors) -> np.ndarray:
    x, y = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (a, b))
    return np.asarray(x @ y.T)


def expected(vectors: cosine.Vectors, least: float) -> Pairs:
    """Equal ones to their first, first ones to each other."""
    values = [tuple(vector) for vector in vectors.tolist()]
    first = [values.index(value) for value in values]
    table = brute(vectors, vectors)
    pairs = {}
    for j in range(len(values)):
        for i in range(j):
            wanted = first[j] == i if values[i] == values[j] else first[i] == i and first[j] == j
            if wanted and table[i, j] >= least - 1e-9:
                pairs[i, j] = table[i, j]
    return pairs


@given(TIES, st.sampled_from([0.6, 0.8, 0.96, 1.0]))
@settings(max_examples=120, deadline=None)
def test_links_at_the_threshold_are_those_of_brute_force(drawn: list[tuple[int, ...]], least: float) -> None:
    vectors = np.array(drawn, dtype=np.float16).reshape(-1, 3)
    assert found(cosine.links(vectors, least)) == pytest.approx(expected(vectors, least), abs=1e-7)


@given(st.integers(0, 2**32), st.integers(2, 40), st.sampled_from([0.9, 0.97, 0.999]))
@settings(max_examples=40, deadline=None)
def test_links_of_planted_vectors_are_those_of_brute_force(seed: int, count: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(5, 16))[rng.integers(0, 5, count)] + rng.normal(0, 0.15, (count, 1)) * rng.normal(
        size=(count, 16)
    )
    stored = vectors.astype(np.float16)
    assert found(cosine.links(stored, least)) == pytest.approx(expected(stored, least), abs=1e-7)


@given(TIES, TIES, st.sampled_from([0.6, 0.96, 1.0]))
@settings(max_examples=60, deadline=None)
def test_matches_are_those_of_brute_force(
    left: list[tuple[int, ...]], right: list[tuple[int, ...]], least: float
) -> None:
    a, b = (np.array(drawn, dtype=np.float16).reshape(-1, 3) for drawn in (left, right))
    rows = [row for piece in cosine.matches(a, b, least) for row in zip(*(c.tolist() for c in piece), strict=True)]
    wanted = {(i, j): s for (i, j), s in np.ndenumerate(brute(a, b)) if s >= least - 1e-9}
    assert {(i, j): s for i, j, s in rows} == pytest.approx(wanted, abs=1e-7)


def planted(count: int, pairs: int, dim: int) -> cosine.Vectors:
    """Row k and row k + pairs have a cosine of 0.98, for k < pairs."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    other = rng.normal(size=(pairs, dim)).astype(np.float32)
    other -= (other * vectors[pairs : 2 * pairs]).sum(axis=1, keepdims=True) * vectors[pairs : 2 * pairs]
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    vectors[:pairs] = 0.98 * vectors[pairs : 2 * pairs] + (1 - 0.98**2) ** 0.5 * other
    return vectors.astype(np.float16)


def test_sixty_thousand_by_cells_give_what_all_pairs_give() -> None:
    vectors = planted(60_000, 2_000, 32)
    cells = found(cosine.links(vectors, 0.97))
    flat = (row for piece in cosine.matches(vectors[:2_000], vectors, 0.97) for row in zip(*piece, strict=True))
    exact = {(int(i), int(j)): float(similarity) for i, j, similarity in flat if i < j}
    assert {(k, k + 2_000) for k in range(2_000)} <= set(exact)
    assert cells.items() <= exact.items()
    assert len(cells) >= 0.995 * len(exact)


def test_cells_do_not_depend_on_order_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosine, "ALL_PAIRS", 0)
    vectors = planted(3_000, 400, 16)
    order = np.random.default_rng(1).permutation(len(vectors))
    before = faiss.omp_get_max_threads()
    straight = found(cosine.links(vectors, 0.9))
    faiss.omp_set_num_threads(2)
    mixed = found(piece.at(order) for piece in cosine.links(vectors[order], 0.9))
    faiss.omp_set_num_threads(before)
    assert straight == mixed
    assert len(straight) >= 390


def test_vectors_without_a_direction_are_not_usable() -> None:
    vectors = np.array([[1, 0], [0, 0], [np.nan, 1], [np.inf, 0], [0, -2]], dtype=np.float16)
    assert cosine.usable(vectors).tolist() == [True, False, False, False, True]
    assert cosine.usable(vectors[:0]).tolist() == []
