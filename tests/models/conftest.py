"""For the tests of every system."""

from collections.abc import Iterator

import pytest

from tests.models.fake_cuda import FakeCuda, rehearsal


@pytest.fixture
def fake_cuda() -> Iterator[FakeCuda]:
    """A GPU that is not there, for the time of the test; see `tests/models/fake_cuda.py`."""
    with rehearsal() as mode:
        yield mode
