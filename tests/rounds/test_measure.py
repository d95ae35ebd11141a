"""A file of held-out pairs that cannot be used is found before anything runs."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.config.rounds import Evaluate
from capfilt.errors import DataError
from capfilt.rounds.loop import run_rounds
from capfilt.rounds.measure import check_held_out
from tests.rounds.test_trainings import pipeline


def test_a_file_that_does_not_exist_stops_the_loop_before_anything_is_written(tmp_path: Path) -> None:
    loop = pipeline().model_copy(update={"evaluate": Evaluate(pairs=str(tmp_path / "gone.parquet"))})
    with pytest.raises(DataError, match=r"gone\.parquet: .*no such file"):
        run_rounds(loop, tmp_path / "loop", local=True)
    assert not (tmp_path / "loop").exists()


@pytest.mark.parametrize(("text", "message"), [("txet", "did you mean 'text'"), (["text", "other"], "column 'other'")])
def test_a_column_that_does_not_exist_is_named(tmp_path: Path, text: str | list[str], message: str) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image": [b"x"], "text": ["a"]}), path)
    with pytest.raises(DataError, match=message):
        check_held_out(Evaluate(pairs=str(path), text=text))
    check_held_out(Evaluate(pairs=str(path)))
