"""Equal keys as stars."""

import faiss
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capfilt.dedup.links import Links, equal, keys_of, links_of, one_thread


@given(st.lists(st.sampled_from([b"", b"a", b"b", b"c\0", b"c"]), max_size=12))
def test_every_later_row_is_linked_to_the_first_of_its_key(values: list[bytes]) -> None:
    firsts, links = equal(keys_of(values))
    assert sorted(firsts.tolist()) == sorted({values.index(value) for value in values})
    expected = {(values.index(value), row) for row, value in enumerate(values) if values.index(value) < row}
    assert set(zip(links.i.tolist(), links.j.tolist(), strict=True)) == expected
    assert (links.similarity == 1).all()


@given(st.permutations([5, 7, 7, 2, 2**63]))
def test_firsts_are_ordered_by_key(values: list[int]) -> None:
    keys = np.array(values, dtype=np.uint64)
    firsts, _ = equal(keys)
    assert keys[firsts].tolist() == sorted(set(values))


def test_no_value_is_no_key() -> None:
    keys = keys_of([None, b"", b"x"])
    assert keys.any(axis=1).tolist() == [False, True, True]
    assert equal(keys_of([]))[0].tolist() == []


def test_links_between_renamed_rows_keep_their_order() -> None:
    links = links_of(np.array([0, 1]), np.array([1, 2])).at(np.array([9, 4, 6]))
    assert isinstance(links, Links)
    assert (links.i.tolist(), links.j.tolist()) == ([4, 4], [9, 6])


def test_threads_are_put_back() -> None:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    with one_thread():
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == 3
    faiss.omp_set_num_threads(before)
