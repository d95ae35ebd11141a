"""The spool: what threads put in comes out by place, whole, and nothing stays on disk."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.download.spool import Spool


@given(st.lists(st.binary(max_size=5000), max_size=40))
def test_bodies_of_many_threads_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes]
) -> None:
    with Spool(tmp_path_factory.getbasetemp()) as spool, ThreadPoolExecutor(8) as pool:
        places = list(pool.map(spool.put, bodies))
        assert [spool.take(place) for place in reversed(places)] == bodies[::-1]


def test_it_has_no_name(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.put(b"x" * 100_000)
        assert list(tmp_path.iterdir()) == []
