"""A run's folder: facts are read once, retries are counted, one writer at a time."""

import json
from pathlib import Path

import pytest

from capfilt.errors import DataError, RunError
from capfilt.store.run_folder import RunFolder, open_run


def test_facts_are_read_once_and_follow_what_is_written(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "nothing").facts == {}
    folder = RunFolder(tmp_path)
    (tmp_path / "run.json").write_text('{"state": "running"}')
    assert folder.facts == {"state": "running"}
    (tmp_path / "run.json").write_text('{"state": "changed by somebody else"}')
    assert folder.facts == {"state": "running"}
    folder.write_facts({"state": "finished"})
    assert folder.facts == json.loads((tmp_path / "run.json").read_text()) == {"state": "finished"}


def test_a_damaged_run_json_has_no_facts_and_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"state":')
    assert RunFolder(tmp_path).facts == {}
    with pytest.raises(DataError, match=r"run.json: cannot be read .*`capfilt run` writes it again"):
        open_run(tmp_path)
    with pytest.raises(DataError, match=r"elsewhere: no run.json there"):
        open_run(tmp_path / "elsewhere")


def test_retries_are_counted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.retries == 0
    folder.add_retry()
    folder.add_retry()
    assert folder.retries == RunFolder(tmp_path).retries == 2


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(RunError, match="another process is working on this run"):
        RunFolder(tmp_path).locked().__enter__()
    with RunFolder(tmp_path).locked():
        pass
