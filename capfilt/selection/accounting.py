"""Where every row and every text of a run went: rows in = kept + rejected + quarantined, or the run fails.

Read from the ledger (`candidates`) beside the light columns of `pairs`, one shard at a time. A row is kept if one of
its texts is; else its own text's reason says whether it is quarantined or what rejected it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from capfilt.config.source import source_name
from capfilt.errors import ConfigError, DataError
from capfilt.selection.policies import JUDGED
from capfilt.store.arrays import Bools, equal
from capfilt.store.layout import RunLayout
from capfilt.store.parquet import open_parquet, parquet_errors
from capfilt.store.schema import ORIGINS
from capfilt.store.shards import manifest, table
from capfilt.store.sidecars import objects

_QUARANTINED = "quarantined:"


@dataclass
class TextCount:
    """Texts of one origin."""

    candidates: int = 0
    """Texts that there are; null ones are not counted."""
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""


@dataclass
class Accounting:
    """The sums of a run."""

    rows_in: int = 0
    rows_kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by the reason of their own text."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """Rows by reason, without the word `quarantined:`."""
    captioned: int = 0
    """Rows that have a caption."""
    captions: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Stage (caption, score) -> rows that it failed on."""
    formats: Counter[str] = field(default_factory=Counter)
    """File format -> kept images."""
    texts: dict[str, TextCount] = field(default_factory=lambda: {origin: TextCount() for origin in ORIGINS})

    @property
    def texts_kept(self) -> int:
        """Pairs of the data set."""
        return sum(count.kept for count in self.texts.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, keys in a fixed order."""
        texts = {
            origin: {"candidates": count.candidates, "kept": count.kept, "rejected": _ordered(count.rejected)}
            for origin, count in self.texts.items()
        }
        return {
            "rows": {
                "in": self.rows_in,
                "kept": self.rows_kept,
                "rejected": self.rejected.total(),
                "quarantined": self.quarantined.total(),
            },
            "rejected": _ordered(self.rejected),
            "quarantined": _ordered(self.quarantined),
            "captioned": {"rows": self.captioned, "captions": self.captions},
            "failed": _ordered(self.failed),
            "kept_images": _ordered(self.formats),
            "texts": texts,
        }


def account(layout: RunLayout) -> Accounting:
    """Count a run whose `select` is done.

    Raises:
        DataError: a shard's sum is off, naming the shard: a row without a verdict, one with two, one that is not there.
    """
    sums = Accounting()
    for shard in range(len(layout.shards)):
        _Ledger(layout, shard).count(sums)
    return sums


def own_rows(origin: pa.ChunkedArray) -> tuple[Bools, NDArray[np.int64]]:
    """Which candidates are a row's own text, and each one's pairs row, from the ledger's column `origin`."""
    own = ~equal(objects(origin), "synthetic")
    return own, np.cumsum(own) - 1


class _Ledger:
    """One shard's rows and candidates, found to belong to each other."""

    def __init__(self, layout: RunLayout, shard: int) -> None:
        self._layout, self._shard, self._path = layout, shard, layout.shard("select", shard)
        self.pairs = table(layout.shard("ingest", shard), ["uid", "status", "format"])
        self.texts = table(self._path, ["uid", "text", "origin", "kept", "reason"])
        self.own, self.row = own_rows(self.texts["origin"])
        self.kept: Bools = self.texts["kept"].to_numpy()
        self.reason = objects(self.texts["reason"])
        self._check()

    def _check(self) -> None:
        rows, counted = manifest(self._layout.shard("ingest", self._shard))["rows"], int(self.own.sum())
        if not rows == self.pairs.num_rows == counted:
            raise self._off(f"{rows} rows in, {counted} in the ledger")
        if rows and not (self.own[0] and self.pairs["uid"].take(self.row).equals(self.texts["uid"])):
            raise self._off("uids are not those of the pairs, in order")
        if not np.array_equal(self.kept, equal(self.reason, None)):
            raise self._off("a text is both kept and rejected, or neither")
        if (self.kept & ~equal(objects(self.pairs["status"]), "ok")[self.row]).any():
            raise self._off("a row is kept that ingest rejected or quarantined")

    def _off(self, told: str) -> DataError:
        return DataError(f"{self._path}: the accounting is off: {told}; remove its folder and run again")

    def count(self, sums: Accounting) -> None:
        kept = np.bincount(self.row[self.kept], minlength=self.pairs.num_rows) > 0
        sums.rows_in += self.pairs.num_rows
        sums.rows_kept += int(kept.sum())
        for reason, n in Counter(self.reason[self.own][~kept]).items():
            name = reason.removeprefix(_QUARANTINED)
            (sums.rejected if name == reason else sums.quarantined)[name] += n
        sums.captioned += len(np.unique(self.row[~self.own]))
        sums.captions += int((~self.own).sum())
        sums.formats.update(objects(self.pairs["format"])[kept])
        self._count_texts(sums)
        for stage in ("caption", "score"):
            if self._layout.has(stage):
                sums.failed[stage] += manifest(self._layout.shard(stage, self._shard))["status"].get("failed", 0)

    def _count_texts(self, sums: Accounting) -> None:
        origin, there = objects(self.texts["origin"]), self.texts["text"].is_valid().to_numpy()
        for name, count in sums.texts.items():
            those = equal(origin, name) & there
            count.candidates += int(those.sum())
            count.kept += int((those & self.kept).sum())
            count.rejected.update(self.reason[those & ~self.kept])


def funnel(accounting: Accounting) -> Table:
    """From the rows that came in to the texts that are kept, for the terminal."""
    out = Table("", "number", "share", title="Where rows and texts went")
    for column in out.columns[1:]:
        column.justify = "right"
    for name, n, of in funnel_lines(accounting):
        out.add_row(Text(name), f"{n:,}", f"{n / of:.1%}" if of else "")
    return out


def funnel_lines(accounting: Accounting) -> list[tuple[str, int, int]]:
    """What, its number, and the number that it is a share of (0: of none); reasons begin with two spaces."""
    rows = accounting.rows_in
    lines = [("rows in", rows, 0), ("rows kept", accounting.rows_kept, rows)]
    for name, reasons in (("rejected", accounting.rejected), ("quarantined", accounting.quarantined)):
        lines += [(f"rows {name}", reasons.total(), rows), *_reasons(reasons, rows)]
    lines += [("rows captioned", accounting.captioned, rows), ("captions", accounting.captions, 0)]
    for origin, count in accounting.texts.items():
        lines += [(f"{origin} texts", count.candidates, 0), (f"{origin} texts kept", count.kept, count.candidates)]
        lines += _reasons(count.rejected, count.candidates)
    return lines


def _reasons(counts: Counter[str], of: int) -> list[tuple[str, int, int]]:
    """The most frequent first."""
    return [(f"  {reason}", n, of) for reason, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts)}


def truth(layout: RunLayout) -> dict[str, Any] | None:
    """How the filter did on a labelled source's own texts; None where the pipeline has no `truth`.

    Counted are the labelled rows that the policy judged (no duplicate, nothing refused for another reason): `wrong_in`
    and `right_in`, of which `wrong_rejected` and `right_kept`; `sentence` says it.
    Raises ConfigError for a source that is not there, DataError for a file that does not fit.
    """
    if layout.pipeline.truth is None:
        return None
    source = _truth_source(layout)
    keys, matches = _truth_file(layout.pipeline.truth.path)
    counts: Counter[tuple[bool, bool]] = Counter()
    for shard in range(len(layout.shards)):
        counts.update(_verdicts(layout, shard, source, keys, matches))
    found = {
        "source": source,
        "wrong_in": counts[False, False] + counts[False, True],
        "wrong_rejected": counts[False, False],
        "right_in": counts[True, False] + counts[True, True],
        "right_kept": counts[True, True],
    }
    return {**found, "sentence": _sentence(found)}


def _truth_source(layout: RunLayout) -> str:
    asked = layout.pipeline.truth.source if layout.pipeline.truth else ""
    names = {source_name(source): source.role for source in layout.pipeline.sources}
    if asked and asked not in names:
        raise ConfigError(f"truth.source: no source is named {asked!r}; there are {', '.join(names)}")
    web = [name for name, role in names.items() if role == "web"]
    if not asked and not web:
        raise ConfigError("truth: no source is of role web, so nothing is filtered; leave truth out")
    return asked or web[0]


def _truth_file(path: str) -> tuple[pa.Array, Bools]:
    """Keys, (n,) string, and whether the text is the image's own, (n,)."""
    with open_parquet(path) as file:
        missing = {"key", "matches"} - set(file.schema_arrow.names)
        if missing:
            raise DataError(f"{path}: no column {' and '.join(sorted(missing))}; truth has `key` and `matches`")
        with parquet_errors(path, "data"):
            found = file.read(columns=["key", "matches"]).drop_null()
            keys, matches = found["key"].cast(pa.string()), found["matches"].cast(pa.bool_())
    return keys.combine_chunks(), matches.to_numpy().astype(bool)


def _verdicts(
    layout: RunLayout, shard: int, source: str, keys: pa.Array, matches: Bools
) -> Iterator[tuple[bool, bool]]:
    """(its text matches, it is kept) of each labelled row that the policy judged."""
    pairs = table(layout.shard("ingest", shard), ["source", "key"])
    ledger = table(layout.shard("select", shard), ["origin", "reason"])
    own, _ = own_rows(ledger["origin"])
    reason = objects(ledger["reason"])[own]
    judged = np.isin(reason.astype(str), [*JUDGED, str(None)]) & equal(objects(pairs["source"]), source)
    places = pc.fill_null(pc.index_in(pairs["key"], keys), -1).to_numpy()
    for i in np.flatnonzero(judged & (places >= 0)):
        yield bool(matches[places[i]]), reason[i] is None


def _sentence(found: dict[str, Any]) -> str:
    def part(n: str, of: str) -> str:
        share = f" ({found[n] / found[of]:.0%})" if found[of] else ""
        return f"{found[n]:,} of {found[of]:,}{share}"

    wrong, right = part("wrong_rejected", "wrong_in"), part("right_kept", "right_in")
    return f"Of the labelled texts that were judged, {wrong} wrong ones were rejected and {right} right ones kept."
