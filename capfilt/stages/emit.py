"""emit: the kept pairs in every asked format, with card and accounting, as one folder that is swapped in whole.

All is written to `.dataset.new` beside `dataset`, which then changes places with it by two renames. A kill between the
two leaves the old one as `.dataset.old`; the next call puts it back before it begins.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from capfilt.config.emit import EmitBlipJson, EmitPairs, EmitParquet, EmitWebDataset
from capfilt.config.emit import EmitFormat as Format
from capfilt.config.pipeline import Pipeline
from capfilt.selection.accounting import Accounting, account
from capfilt.selection.provenance import model_name
from capfilt.sinks.base import Counts, pictures
from capfilt.sinks.blip_json import write_blip_json
from capfilt.sinks.card import card
from capfilt.sinks.pairs import write_pairs
from capfilt.sinks.parquet import write_parquet
from capfilt.sinks.webdataset import write_webdataset
from capfilt.stages.base import StageSpec, Task
from capfilt.store.fingerprint import canonical
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import read_json
from capfilt.store.schema import CANDIDATES, DATASET, PAIRS
from capfilt.store.shards import file_sha256, write_atomic

NAME, NEW, OLD = DATASET.folder, ".dataset.new", ".dataset.old"
MARKER = "dataset.json"
"""Fingerprint and file hashes of the data set, in the run's folder; written when it is complete."""


def settings(pipeline: Pipeline) -> Any:
    """Return the formats, and the names that the card has."""
    models = [use and model_name(use.model) for use in (pipeline.caption, pipeline.score)]
    formats = [part.model_dump(mode="json") for part in pipeline.emit]
    return {"name": pipeline.name, "emit": formats, "models": models}


def finished(layout: RunLayout, fingerprint: str) -> bool:
    """Return whether the data set with that fingerprint was written to its end."""
    return (read_json(layout.run / MARKER) or {}).get("fingerprint") == fingerprint


SPEC = StageSpec(
    output=DATASET,
    version=1,
    settings=settings,
    inputs=(PAIRS, CANDIDATES),
    tasks="one",
    finished=finished,
    reruns_in_select=True,
)


class EmitStage:
    """Writes `dataset/`. Images are streamed, one batch of a shard at a time."""

    spec: ClassVar[StageSpec] = SPEC

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, task: Task) -> None:
        """Write the data set anew; nothing in a dry run. No image is decoded.

        Raises:
            DataError: rows in are not rows kept, rejected and quarantined; or a damaged shard.
        """
        if task.rows.dry:
            return
        accounting = account(self._layout)
        run = self._layout.run
        (run / MARKER).unlink(missing_ok=True)
        recover(run)
        (run / NEW).mkdir()
        write_dataset(self._layout, accounting, run / NEW)
        swap(run)
        write_atomic(run / MARKER, canonical(_marker(self._layout)))


def _marker(layout: RunLayout) -> dict[str, Any]:
    """Return the data set's fingerprint, and the hashes by which `capfilt verify` knows its files."""
    root = layout.run / NAME
    files = {p.relative_to(root).as_posix(): file_sha256(p) for p in sorted(root.rglob("*")) if p.is_file()}
    return {"fingerprint": layout.fingerprints.get(SPEC.name), "files": files}


def write_dataset(layout: RunLayout, accounting: Accounting, folder: Path) -> None:
    """Every format, README.md and accounting.json into an empty folder."""
    emitted: dict[str, Counts] = {
        part.format: _write(part, layout, accounting, folder) for part in layout.pipeline.emit
    }
    (folder / "README.md").write_text(card(layout, accounting, emitted), encoding="utf-8", newline="\n")
    facts = {**accounting.to_dict(), "emitted": emitted}
    (folder / "accounting.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write(part: Format, layout: RunLayout, accounting: Accounting, folder: Path) -> Counts:
    pairs = accounting.texts_kept
    match part:
        case EmitParquet():
            return write_parquet(pictures(layout), folder, pairs, part.rows_per_file)
        case EmitWebDataset():
            return write_webdataset(pictures(layout), folder, accounting.formats, pairs, part.rows_per_file)
        case EmitBlipJson():
            return write_blip_json(pictures(layout), folder, layout.pipeline.name, part.link)
        case EmitPairs():
            return write_pairs(layout, folder)


def recover(run: Path) -> None:
    """Clean up after a writer that was killed: `dataset` is then the last complete one, if there ever was one."""
    if (run / OLD).exists() and not (run / NAME).exists():
        (run / OLD).rename(run / NAME)
    for leftover in (run / OLD, run / NEW):
        if leftover.exists():
            shutil.rmtree(leftover)


def swap(run: Path) -> None:
    """`.dataset.new`, complete, becomes `dataset`."""
    os.sync()
    if (run / NAME).exists():
        (run / NAME).rename(run / OLD)
    (run / NEW).rename(run / NAME)
    if (run / OLD).exists():
        shutil.rmtree(run / OLD)
