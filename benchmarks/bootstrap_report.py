"""Write the results of the bootstrap experiment as Parquet, Markdown and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bootstrap_stats import Estimate, difference, estimate, hits

Results = dict[tuple[str, str, int], dict[str, Any]]
"""(setting, row, seed) -> the result of `Lab.result`."""

PAPER = [
    ("filter", "raw", ">"),
    ("captioner", "raw", ">"),
    ("captioner", "filter", ">"),
    ("captioner+filter", "filter", ">"),
    ("captioner+filter", "captioner", ">"),
    ("captioner+filter", "raw", ">"),
    ("control", "raw", "="),
    ("captioner+filter", "control", ">"),
    ("captioner+filter", "human", "?"),
    ("filter", "human", "?"),
    ("raw", "human", "?"),
    ("captioner+filter", "one-caption", "?"),
    ("one-caption", "beam", ">"),
    ("captioner+filter", "shared", ">"),
    ("captioner+filter", "continued", "="),
    ("two-rounds", "captioner+filter", "?"),
    ("five-captions", "captioner+filter", "?"),
    ("ensemble", "captioner+filter", "?"),
]
"""Row, row, and what the paper found between them; ?: not reported, or left as future work."""
_LISTS = ("t2i_ranks", "i2t_ranks", "cider_each", "captions")


NOTES = "## What was tried, and why"
"""The text from this heading on is written by hand, and is kept when the tables above it are rewritten."""


def write(results: Results, out: Path, command: str) -> str:
    """Write bootstrap.parquet, .md and .svg into `out`; return the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    scalars = [
        {"setting": setting, "seed": seed, **{k: v for k, v in found.items() if k not in _LISTS}}
        for (setting, _, seed), found in results.items()
    ]
    names = list(dict.fromkeys(name for row in scalars for name in row))
    pq.write_table(pa.table({name: [row.get(name) for row in scalars] for name in names}), out / "bootstrap.parquet")
    text, file = markdown(results, command), out / "bootstrap.md"
    found = file.read_text().partition(NOTES) if file.is_file() else ("", "", "")
    file.write_text("\n".join([text, *([found[1] + found[2]] if found[1] else [])]))
    (out / "bootstrap.svg").write_text(svg(results))
    return text


def of(results: Results, setting: str, row: str) -> list[dict[str, Any]]:
    """Return the results of a row in the order of the seeds."""
    return [found for (s, r, _), found in sorted(results.items()) if (s, r) == (setting, row)]


def markdown(results: Results, command: str) -> str:
    """Render, per setting, a table of rows and a table of the paper's orderings."""
    seeds = sorted({seed for _, _, seed in results})
    lines = [
        "# CapFilt in miniature", "", f"    {command}", "",
        f"Seeds {', '.join(map(str, seeds))}. R@k in percent by ITC; R@1 is the mean of both directions, its interval "
        "over seeds and test images. Noise: share of texts that the filter rejects.", "",
    ]  # fmt: skip
    for setting in dict.fromkeys(setting for setting, _, _ in results):
        rows = list(dict.fromkeys(row for s, row, _ in results if s == setting))
        lines += [f"## {setting}", "", *_table(results, setting, rows), "", *_orders(results, setting, rows), ""]
    return "\n".join(lines)


def _table(results: Results, setting: str, rows: Sequence[str]) -> list[str]:
    lines = [
        "| row | pairs | R@1 | t2i R@1 / 5 / 10 | i2t R@1 / 5 / 10 | CIDEr | noise web / synthetic "
        "| precision / recall / AUC of ITC, of ITM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = of(results, setting, row)
        ways = (" / ".join(_percent(_mean(found, f"{way}_r{k}")) for k in (1, 5, 10)) for way in ("t2i", "i2t"))
        noise = " / ".join(_percent(_mean(found, name)) for name in ("web_noise", "synthetic_noise"))
        truth = " / ".join(_percent(_mean(found, name)) for name in ("precision", "recall", "auc", "itm_auc"))
        r1 = _interval(estimate([hits(one) for one in found]))
        pairs = f"{_mean(found, 'pairs'):.0f}"
        cider = f"{_mean(found, 'cider'):.3f}"
        lines.append(f"| {' | '.join([row, pairs, r1, *ways, cider, noise, truth])} |")
    return lines


def _orders(results: Results, setting: str, rows: Sequence[str]) -> list[str]:
    lines = ["| pair | paper | R@1, difference in points | CIDEr, difference | here, by R@1 |", "|---|---|---|---|---|"]
    for one, other, paper in PAPER:
        if one in rows and other in rows:
            these, those = of(results, setting, one), of(results, setting, other)
            both = [(a, b) for a, b in zip(these, those, strict=True)]
            gap = difference([hits(a) for a, _ in both], [hits(b) for _, b in both])
            said = difference(*([np.array(pair[side]["cider_each"]) for pair in both] for side in (0, 1)))
            cider = f"{said.mean:+.3f} [{said.low:+.3f}, {said.high:+.3f}]"
            lines.append(f"| {one} - {other} | {paper} | {_interval(gap, '+')} | {cider} | {gap.verdict} |")
    return lines


def _mean(found: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [one[name] for one in found if one.get(name) is not None]
    return float(np.mean(values)) if values else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(e: Estimate, sign: str = "") -> str:
    return f"{100 * e.mean:{sign}.1f} [{100 * e.low:{sign}.1f}, {100 * e.high:{sign}.1f}]"


def svg(results: Results) -> str:
    """Draw one panel per setting and one line per row: R@1 with its interval, and a dot per seed."""
    settings = list(dict.fromkeys(setting for setting, _, _ in results))
    rows = list(dict.fromkeys(row for _, row, _ in results))
    width, height = 180 + 300 * len(settings), 60 + 24 * len(rows)
    top = max(estimate([hits(one) for one in of(results, s, r)]).high for s, r, _ in results) * 1.05 or 1.0
    parts = [f'<text x="112" y="{44 + 24 * i}" text-anchor="end">{row}</text>' for i, row in enumerate(rows)]
    for panel, setting in enumerate(settings):
        left = 130 + 300 * panel
        parts.append(f'<text x="{left + 130}" y="16" text-anchor="middle">{setting}: R@1, %</text>')
        parts.append(f'<path d="M{left} 26V{height - 24}H{left + 270}" fill="none" stroke="#999"/>')
        for tick in np.linspace(0, top, 5):
            x = left + 260 * tick / top
            parts.append(f'<text x="{x:.0f}" y="{height - 8}" text-anchor="middle">{100 * tick:.0f}</text>')
        for i, row in enumerate(rows):
            parts += _mark([hits(one) for one in of(results, setting, row)], left, 40 + 24 * i, 260 / top)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _mark(values: Sequence[Any], left: int, y: int, scale: float) -> list[str]:
    if not values:
        return []
    e = estimate(values)
    low, high, mean = (left + scale * v for v in (e.low, e.high, e.mean))
    dots = [f'<circle cx="{left + scale * v.mean():.1f}" cy="{y}" r="2" fill="#999"/>' for v in values]
    line = f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="#1f77b4" stroke-width="2"/>'
    return [line, *dots, f'<circle cx="{mean:.1f}" cy="{y}" r="4" fill="#1f77b4"/>']
