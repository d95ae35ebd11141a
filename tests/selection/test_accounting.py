from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from capfilt.errors import DataError
from capfilt.selection.accounting import account
from tests.selection.counted_run import SHARDS, Verdict, candidate, counted_layout
from tests.sidecar_rows import Record, write_shard


def test_every_row_and_text_is_counted_once(tmp_path: Path) -> None:
    found = account(counted_layout(tmp_path))
    assert found.texts_kept == 5
    assert found.to_dict() == {
        "rows": {"in": 9, "kept": 4, "rejected": 3, "quarantined": 2},
        "rejected": {"below_itm_threshold": 1, "duplicate:exact": 1, "rejected:text_empty": 1},
        "quarantined": {"bomb": 1, "killed_worker": 1},
        "captioned": {"rows": 4, "captions": 5},
        "failed": {"caption": 1},
        "kept_images": {"GIF": 2, "PNG": 2},
        "texts": {
            "web": {
                "candidates": 7,
                "kept": 2,
                "rejected": {
                    "below_itm_threshold": 2,
                    "duplicate:exact": 1,
                    "quarantined:killed_worker": 1,
                    "rejected:text_empty": 1,
                },
            },
            "synthetic": {
                "candidates": 5,
                "kept": 2,
                "rejected": {"below_itm_threshold": 1, "duplicate:exact": 1, "over_max_texts": 1},
            },
            "human": {"candidates": 1, "kept": 1, "rejected": {}},
        },
    }


def test_a_run_without_rows(tmp_path: Path) -> None:
    assert account(counted_layout(tmp_path, [{}])).to_dict()["rows"] == {
        "in": 0,
        "kept": 0,
        "rejected": 0,
        "quarantined": 0,
    }


def ledger(shard: dict[str, list[Verdict]]) -> list[Record]:
    return [candidate(uid, *text) for uid, texts in shard.items() for text in texts]


WRONG: Mapping[str, tuple[list[Record], str]] = {
    "a row is missing": (ledger(SHARDS[1])[:-1], "5 rows in, 4 in the ledger"),
    "a row too many": ([*ledger(SHARDS[1]), candidate("z", "web", None)], "5 rows in, 6 in the ledger"),
    "another row": ([*ledger(SHARDS[1])[:-1], candidate("z", "web", None)], "uids"),
    "rows in another order": ([*ledger(SHARDS[1])[-1:], *ledger(SHARDS[1])[:-1]], "uids"),
    "a caption of another row": ([*ledger(SHARDS[1]), candidate("a", "synthetic", None)], "uids"),
    "a caption before its row": ([candidate("e", "synthetic", None), *ledger(SHARDS[1])], "uids"),
    "kept with a reason": ([*ledger(SHARDS[1])[:-1], candidate("i", "web", "no_text", kept=True)], "both"),
    "rejected without one": ([*ledger(SHARDS[1])[:-1], candidate("i", "web", None, kept=False)], "or neither"),
    "kept though refused": (
        [*ledger(SHARDS[1])[:2], candidate("f", "web", None), *ledger(SHARDS[1])[3:]],
        "ingest rejected",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_sum_that_is_off_names_the_shard(tmp_path: Path, fault: str) -> None:
    layout = counted_layout(tmp_path)
    rows, told = WRONG[fault]
    write_shard(layout, "select", 1, rows)
    with pytest.raises(DataError, match=rf"candidates-0/00001\.parquet: the accounting is off: .*{told}"):
        account(layout)


def test_pairs_of_which_rows_were_lost(tmp_path: Path) -> None:
    layout = counted_layout(tmp_path)
    path = layout.shard("ingest", 0)
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    with pytest.raises(DataError, match="accounting is off: 4 rows in"):
        account(layout)
