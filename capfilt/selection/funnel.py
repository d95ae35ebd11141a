"""The accounting as lines: from the rows that came in to the texts that are kept."""

from collections import Counter

from rich.table import Table
from rich.text import Text

from capfilt.selection.accounting import Accounting

Line = tuple[str, int, int]
"""Name, its number, and the number that it is a share of (0 if it is no share). Names of reasons are indented."""


def funnel(accounting: Accounting) -> Table:
    """Return the lines as a table for the terminal."""
    out = Table("", "number", "share", title="Where rows and texts went")
    for column in out.columns[1:]:
        column.justify = "right"
    for name, n, of in funnel_lines(accounting):
        out.add_row(Text(name), f"{n:,}", f"{n / of:.1%}" if of else "")
    return out


def funnel_lines(accounting: Accounting) -> list[Line]:
    """Return the numbers of rows by outcome and reason, then the numbers of texts by origin."""
    rows = accounting.rows_in
    lines = [("rows in", rows, 0), ("rows kept", accounting.rows_kept, rows)]
    for name, reasons in (("rejected", accounting.rejected), ("quarantined", accounting.quarantined)):
        lines += [(f"rows {name}", reasons.total(), rows), *_reasons(reasons, rows)]
    lines += [("rows captioned", accounting.captioned, rows), ("captions", accounting.captions, 0)]
    for origin, count in accounting.texts.items():
        lines += [(f"{origin} texts", count.candidates, 0), (f"{origin} texts kept", count.kept, count.candidates)]
        lines += _reasons(count.rejected, count.candidates)
    return lines


def _reasons(counts: Counter[str], of: int) -> list[Line]:
    """One line per reason, the most frequent first."""
    return [(f"  {reason}", n, of) for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
