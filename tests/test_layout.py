"""The folders of tests/ are those of capfilt/, or of the repository where they test benchmarks, data or pages."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def test_every_folder_of_tests_mirrors_one_of_the_code() -> None:
    folders = {file.parent.relative_to(TESTS) for file in TESTS.rglob("test_*.py")}
    assert len(folders) > 10
    assert [f for f in folders if not (ROOT / "capfilt" / f).is_dir() and not (ROOT / f).is_dir()] == []
