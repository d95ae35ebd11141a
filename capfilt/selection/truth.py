"""How the filter did on a labelled source: `truth` in the pipeline file names a table of right and wrong texts."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.config.source import source_name
from capfilt.errors import ConfigError, DataError
from capfilt.selection.ledger import own_rows
from capfilt.selection.policies import JUDGED
from capfilt.store.arrays import Bools, equal
from capfilt.store.layout import RunLayout
from capfilt.store.parquet import open_parquet, parquet_errors
from capfilt.store.schema import CANDIDATES, PAIRS
from capfilt.store.shards import table
from capfilt.store.sidecars import objects


def truth(layout: RunLayout) -> dict[str, Any] | None:
    """Compare the verdicts on a labelled source's own texts with the labels.

    Only labelled rows count that the policy judged: no duplicates, nothing that was refused for another reason.

    Returns:
        source, wrong_in (judged texts labelled as wrong), wrong_rejected (of these), right_in, right_kept (of these),
        and a `sentence` that says so. None if the pipeline has no `truth`.

    Raises:
        ConfigError: `truth.source` names no source of the pipeline.
        DataError: the file has no column `key` or `matches`, or cannot be read.
    """
    if layout.pipeline.truth is None:
        return None
    source = _labelled_source(layout)
    keys, matches = _labels(layout.pipeline.truth.path)
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


def _labelled_source(layout: RunLayout) -> str:
    """Name of the source that the labels belong to: as given, else the first web source."""
    asked = layout.pipeline.truth.source if layout.pipeline.truth else ""
    names = {source_name(source): source.role for source in layout.pipeline.sources}
    if asked and asked not in names:
        raise ConfigError(f"truth.source: no source is named {asked!r}; there are {', '.join(names)}")
    web = [name for name, role in names.items() if role == "web"]
    if not asked and not web:
        raise ConfigError("truth: no source is of role web, so nothing is filtered; leave truth out")
    return asked or web[0]


def _labels(path: str) -> tuple[pa.Array, Bools]:
    """Keys, (n,) string, and whether the text belongs to its image, (n,)."""
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
    """(the text matches its image, the text is kept) for each labelled row that the policy judged."""
    pairs = table(layout.shard(PAIRS, shard), ["source", "key"])
    ledger = table(layout.shard(CANDIDATES, shard), ["origin", "reason"])
    own, _ = own_rows(ledger["origin"])
    reason = objects(ledger["reason"])[own]
    judged = np.isin(reason.astype(str), [*JUDGED, str(None)]) & equal(objects(pairs["source"]), source)
    places = pc.fill_null(pc.index_in(pairs["key"], keys), -1).to_numpy()
    for i in np.flatnonzero(judged & (places >= 0)):
        yield bool(matches[places[i]]), reason[i] is None


def _sentence(found: dict[str, Any]) -> str:
    def share(n: str, of: str) -> str:
        percent = f" ({found[n] / found[of]:.0%})" if found[of] else ""
        return f"{found[n]:,} of {found[of]:,}{percent}"

    wrong, right = share("wrong_rejected", "wrong_in"), share("right_kept", "right_in")
    return f"Of the labelled texts that were judged, {wrong} wrong ones were rejected and {right} right ones kept."
