"""The spool: what threads put in comes out by place, whole, and nothing stays on disk."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.download import body_buffer as module
from capfilt.download.body_buffer import BodyBuffer, Place


@given(st.lists(st.binary(max_size=5000), max_size=40))
def test_bodies_of_many_threads_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes]
) -> None:
    with BodyBuffer(tmp_path_factory.getbasetemp()) as spool, ThreadPoolExecutor(8) as pool:
        places = list(pool.map(spool.put, bodies))
        assert [spool.take(place, last=False) for place in places] == bodies
        assert [spool.take(place) for place in reversed(places)] == bodies[::-1]


def test_more_than_is_kept_in_memory_lies_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IN_MEMORY", 100)
    with BodyBuffer(tmp_path) as spool:
        first, second = spool.put(b"x" * 100), spool.put(b"y")
        assert isinstance(second, Place)
        assert (spool.take(first), spool.take(second)) == (b"x" * 100, b"y")
        assert spool.put(b"z" * 100) == b"z" * 100
        assert list(tmp_path.iterdir()) == []
