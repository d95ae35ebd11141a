"""What became of every row and every text of a run: rows in = kept + rejected + quarantined, or the run fails.

Counted from the ledger (`candidates`) and the light columns of `pairs`, one shard at a time. A row is kept if one of
its texts is kept. Otherwise the reason against its own text says whether it is quarantined or what rejected it.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capfilt.errors import DataError
from capfilt.selection.ledger import own_rows
from capfilt.store.arrays import Bools, equal
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CANDIDATES, CAPTIONS, ORIGINS, PAIRS, SCORES
from capfilt.store.shards import manifest, table
from capfilt.store.sidecars import objects

_QUARANTINED = "quarantined:"


@dataclass
class TextCount:
    """Texts of one origin."""

    candidates: int = 0
    """All texts that are not null."""
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected texts by reason."""


@dataclass
class Accounting:
    """The sums of a run."""

    rows_in: int = 0
    rows_kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by the reason against their own text."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """Rows by reason, without the prefix `quarantined:`."""
    captioned: int = 0
    """Rows that have a caption."""
    captions: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Stage (caption, score) -> rows on which it failed."""
    formats: Counter[str] = field(default_factory=Counter)
    """File format -> kept images."""
    texts: dict[str, TextCount] = field(default_factory=lambda: {origin: TextCount() for origin in ORIGINS})

    @property
    def texts_kept(self) -> int:
        """Pairs of the data set."""
        return sum(count.kept for count in self.texts.values())

    def to_dict(self) -> dict[str, Any]:
        """The sums as JSON types, keys in a fixed order."""
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
        DataError: the sum of a shard is off, naming the shard: a row without a verdict, one with two, a missing one.
    """
    sums = Accounting()
    for shard in range(len(layout.shards)):
        _ShardCount(layout, shard).add_to(sums)
    return sums


class _ShardCount:
    """One shard's rows and texts, checked to belong together."""

    def __init__(self, layout: RunLayout, shard: int) -> None:
        self._layout, self._shard, self._path = layout, shard, layout.shard(CANDIDATES, shard)
        self.pairs = table(layout.shard(PAIRS, shard), ["uid", "status", "format"])
        self.texts = table(self._path, ["uid", "text", "origin", "kept", "reason"])
        self.own, self.row = own_rows(self.texts["origin"])
        self.kept: Bools = self.texts["kept"].to_numpy()
        self.reason = objects(self.texts["reason"])
        self._check()

    def _check(self) -> None:
        rows, counted = manifest(self._layout.shard(PAIRS, self._shard))["rows"], int(self.own.sum())
        if not rows == self.pairs.num_rows == counted:
            raise self._off(f"{rows} rows in, {counted} in the ledger")
        if rows and not (self.own[0] and self.pairs["uid"].take(self.row).equals(self.texts["uid"])):
            raise self._off("the uids are not those of the pairs, in order")
        if not np.array_equal(self.kept, equal(self.reason, None)):
            raise self._off("a text is both kept and rejected, or neither")
        if (self.kept & ~equal(objects(self.pairs["status"]), "ok")[self.row]).any():
            raise self._off("a row is kept that ingest rejected or quarantined")

    def _off(self, problem: str) -> DataError:
        return DataError(f"{self._path}: the accounting is off: {problem}; remove its folder and run again")

    def add_to(self, sums: Accounting) -> None:
        """Add the shard's rows and texts to the sums."""
        kept = np.bincount(self.row[self.kept], minlength=self.pairs.num_rows) > 0
        sums.rows_in += self.pairs.num_rows
        sums.rows_kept += int(kept.sum())
        for reason, n in Counter(self.reason[self.own][~kept]).items():
            name = reason.removeprefix(_QUARANTINED)
            (sums.rejected if name == reason else sums.quarantined)[name] += n
        sums.captioned += len(np.unique(self.row[~self.own]))
        sums.captions += int((~self.own).sum())
        sums.formats.update(objects(self.pairs["format"])[kept])
        self._add_texts(sums)
        for kind in (CAPTIONS, SCORES):
            if self._layout.has(kind):
                sums.failed[kind.stage] += manifest(self._layout.shard(kind, self._shard))["status"].get("failed", 0)

    def _add_texts(self, sums: Accounting) -> None:
        origin, present = objects(self.texts["origin"]), self.texts["text"].is_valid().to_numpy()
        for name, count in sums.texts.items():
            those = equal(origin, name) & present
            count.candidates += int(those.sum())
            count.kept += int((those & self.kept).sum())
            count.rejected.update(self.reason[those & ~self.kept])


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts)}
