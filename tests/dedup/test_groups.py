"""Components, keepers and kinds against a search by hand."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.dedup.groups import DUPLICATE_KINDS, DuplicateGroups, Marks
from capfilt.dedup.links import Links

ROWS = 9
LINK = st.tuples(
    st.integers(0, ROWS - 1),
    st.integers(0, ROWS - 1),
    st.sampled_from(DUPLICATE_KINDS[1:]),
    st.sampled_from([0.5, 0.75, 0.97]),
).filter(lambda link: link[0] < link[1])
Drawn = tuple[int, int, str, float]


def marks(links: list[Drawn], rows: int = ROWS) -> Marks:
    groups = DuplicateGroups(rows)
    for i, j, kind, similarity in links:
        groups.add(Links(np.array([i]), np.array([j]), np.array([similarity], dtype=np.float32)), kind)
    return groups.marks()


def reached(row: int, links: list[Drawn]) -> set[int]:
    """Rows that can be reached from one."""
    there, todo = {row}, [row]
    while todo:
        here = todo.pop()
        near = {b for link in links for a, b in (link[:2], link[1::-1]) if a == here} - there
        there |= near
        todo += near
    return there


@given(st.lists(LINK, max_size=10))
@settings(max_examples=50, deadline=None)
def test_the_keeper_is_the_best_row_of_its_component(links: list[Drawn]) -> None:
    found = marks(links)
    assert found.keeper.tolist() == [min(reached(row, links)) for row in range(ROWS)]
    assert (found.keeper[found.keeper] == found.keeper).all()


@given(st.lists(LINK, max_size=10))
@settings(max_examples=50, deadline=None)
def test_a_mark_tells_the_strongest_link_to_a_better_row(links: list[Drawn]) -> None:
    found = marks(links)
    for row in range(ROWS):
        own = [(DUPLICATE_KINDS.index(kind), s) for _, j, kind, s in links if j == row]
        own = own or [(DUPLICATE_KINDS.index(kind), s) for i, _, kind, s in links if i == row]
        best = max(own, default=(0, 0.0))
        assert (found.kind[row], found.similarity[row]) == (best[0], np.float32(best[1]))


@given(st.lists(LINK, max_size=10), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_links_changes_nothing(links: list[Drawn], random: np.random.Generator) -> None:
    mixed = [*links, *links]
    random.shuffle(mixed)
    assert all((a == b).all() for a, b in zip(marks(links), marks(mixed), strict=True))


def test_a_long_chain_in_one_piece() -> None:
    groups, rows = DuplicateGroups(100_000), np.arange(100_000)
    groups.add(Links(rows[:-1], rows[1:], np.ones(99_999, dtype=np.float32)), "semantic")
    assert not groups.marks().keeper.any()
