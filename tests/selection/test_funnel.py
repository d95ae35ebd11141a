from pathlib import Path

from rich.console import Console

from capfilt.selection.accounting import account
from capfilt.selection.funnel import funnel
from tests.selection.counted_run import counted_layout


def test_the_funnel_shows_rows_and_texts(tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=(tmp_path / "out.txt").open("w"))
    console.print(funnel(account(counted_layout(tmp_path))))
    shown = [line.strip("│ ").replace("│", " ").split() for line in console.export_text().splitlines()]
    for line in (["rows", "in", "9"], ["rows", "kept", "4", "44.4%"], ["bomb", "1", "11.1%"], ["captions", "5"]):
        assert line in shown
    assert ["web", "texts", "kept", "2", "28.6%"] in shown
