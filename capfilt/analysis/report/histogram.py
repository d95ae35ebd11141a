"""Histograms of ITM and ITC by origin, fine enough for a browser to move the thresholds without the rows.

An axis has 200 steps (ITM 0 .. 1 by 0.005, ITC by 0.01), and one more edge at the run's own threshold if that is
between two steps. Texts are counted by both scores at once, so that a rule on both is exact, too: at most about 40,000
cells per origin (0.7 MB of JSON), a few thousand in practice, for any number of rows. Edges are float32 as the
thresholds of `select` are, so the count above an edge is the number of texts that `select` would keep.
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import duckdb
import numpy as np

from capfilt.analysis.sql import ask
from capfilt.config.pipeline import SelectSettings
from capfilt.selection.policies import policy_of, threshold_reasons
from capfilt.selection.texts import Score

_THRESHOLD_REASONS = ", ".join(f"'{reason}'" for reason in threshold_reasons())
POOL = f"(kept OR reason IN ({_THRESHOLD_REASONS}))"
"""SQL condition: texts that a threshold decides on; no duplicates, no refused rows."""
HEIGHT, WIDTH = 100, 1000
"""Size of a chart in SVG units; the page stretches it."""
BARS = 50
"""Bars per chart."""
_STEPS: dict[Score, int] = {"itm": 200, "itc": 100}


@dataclass(frozen=True)
class Axis:
    """The edges of one score: ascending float32 values. `at` is the index of the run's threshold among them.

    The bin of a text is the index of the last edge that is not above its score; -1 where the score is null.
    """

    score: Score
    low: float
    high: float
    edges: list[float]
    at: int

    def bin(self, value: float | None) -> int:
        """Return the index of the bin of a score."""
        return -1 if value is None else max(bisect_right(self.edges, value) - 1, 0)

    def place(self, value: float) -> float:
        """Return the position of a value on the axis, 0 (left) .. 1 (right)."""
        return (value - self.low) / (self.high - self.low)

    def sql(self) -> str:
        """Return `bin` as an SQL expression: the step by division, corrected in float32, plus the extra edge."""
        n, x = _STEPS[self.score], self.score
        step = f"floor({x}::DOUBLE * {n})"
        step = f"({step} + ({x} >= (({step} + 1) / {n}e0)::FLOAT)::INT - ({x} < ({step} / {n}e0)::FLOAT)::INT)"
        own = self.edges[self.at]
        extra = "" if own in _grid(self.score, self.low, self.high) else f" + ({x} >= {own!r}::FLOAT)::INT"
        last = len(self.edges) - 1
        inside = f"greatest(0, least({last}, {step} - {round(self.low * n)}{extra}))::INT"
        return f"CASE WHEN {x} IS NULL THEN -1 ELSE {inside} END"


@dataclass(frozen=True)
class Counts:
    """Number of texts in the pool by origin and by both bins."""

    itm: Axis
    itc: Axis
    cells: dict[str, list[tuple[int, int, int]]]
    """Origin -> (ITM bin, ITC bin, number of texts), in ascending order of bins."""

    def marginal(self, origin: str, score: Score) -> list[int]:
        """Return the texts per step of an axis. The extra edge splits no step; the last step includes the upper end."""
        axis, which = (self.itm, 0) if score == "itm" else (self.itc, 1)
        steps = round((axis.high - axis.low) * _STEPS[score])
        out = [0] * steps
        for cell in self.cells.get(origin, []):
            if cell[which] >= 0:
                step = bisect_right(_grid(score, axis.low, axis.high), axis.edges[cell[which]]) - 1
                out[min(step, steps - 1)] += cell[2]
        return out


def count(connection: duckdb.DuckDBPyConnection, select: SelectSettings) -> Counts:
    """Count the pool of a run by origin and score; needs the view `candidates`."""
    thresholds = policy_of(select).thresholds(select)
    bounds = ask(connection, f"SELECT min(itc), max(itc) FROM candidates WHERE {POOL}").rows[0]
    itm, itc = _axis("itm", 0.0, 1.0, thresholds.get("itm")), _itc_axis(bounds, thresholds.get("itc"))
    text = f"SELECT origin, {itm.sql()}, {itc.sql()}, count(*) FROM candidates WHERE {POOL} GROUP BY ALL ORDER BY ALL"
    cells: dict[str, list[tuple[int, int, int]]] = {}
    for origin, i, j, n in ask(connection, text).rows:
        cells.setdefault(origin, []).append((i, j, n))
    return Counts(itm, itc, cells)


def _itc_axis(bounds: tuple[Any, ...], threshold: float | None) -> Axis:
    """Return an axis that includes all stored scores and the threshold, with its ends at multiples of 0.1."""
    values = [float(value) for value in (*bounds, threshold) if value is not None]
    low = max(floor(min(values, default=0.0) * 10) / 10, -1.0)
    high = min(ceil(max(values, default=1.0) * 10) / 10, 1.0)
    return _axis("itc", low, high if high > low else low + 0.1, threshold)


def _axis(score: Score, low: float, high: float, threshold: float | None) -> Axis:
    """Return an axis with an edge at the run's threshold; without a threshold, `at` is the left end."""
    own = float(np.float32(low if threshold is None else threshold))
    edges = sorted({*_grid(score, low, high), own})
    return Axis(score, low, high, edges, edges.index(own))


def _grid(score: Score, low: float, high: float) -> list[float]:
    n = _STEPS[score]
    return [float(np.float32(k / n)) for k in range(round(low * n), round(high * n) + 1)]


def bars(steps: list[int]) -> str:
    """Draw at most BARS bars from left to right as an SVG path; their height is the square root of the count."""
    several = ceil(len(steps) / BARS)
    counts = [sum(steps[k : k + several]) for k in range(0, len(steps), several)]
    top, width = max(counts, default=0) ** 0.5 or 1.0, WIDTH * several / max(len(steps), 1)
    parts = []
    for k, n in enumerate(counts):
        if n:
            high, right = max(n**0.5 / top * HEIGHT, 1), min((k + 1) * width, WIDTH)
            parts.append(f"M{k * width:.2f} {HEIGHT}V{HEIGHT - high:.2f}H{right:.2f}V{HEIGHT}Z")
    return "".join(parts)
