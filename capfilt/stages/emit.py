"""emit: write the kept pairs in the requested formats, with a card and the accounting; replaces the previous data set.

Everything is written to `.dataset.new`. Two renames then put it in the place of `dataset`. A kill between the two
leaves the previous data set as `.dataset.old`; the next call restores it first.
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
"""Folders in the run's folder: the data set, the one being written, the previous one."""
MARKER = "dataset.json"
"""File in the run's folder with the data set's fingerprint and file hashes; written when the data set is complete."""


def settings(pipeline: Pipeline) -> Any:
    """Return the formats, and the names on the data set's card."""
    models = [use and model_name(use.model) for use in (pipeline.caption, pipeline.score)]
    formats = [part.model_dump(mode="json") for part in pipeline.emit]
    return {"name": pipeline.name, "emit": formats, "models": models}


def finished(layout: RunLayout, fingerprint: str) -> bool:
    """Return whether the data set with that fingerprint is complete."""
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
        """Write the data set, or nothing in a dry run. No image is decoded.

        Raises:
            DataError: the rows kept, rejected and quarantined do not add up to the rows in; or a shard is damaged.
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
    """Return the data set's fingerprint, and its file hashes for `capfilt verify`."""
    root = layout.run / NAME
    files = {p.relative_to(root).as_posix(): file_sha256(p) for p in sorted(root.rglob("*")) if p.is_file()}
    return {"fingerprint": layout.fingerprints.get(SPEC.name), "files": files}


def write_dataset(layout: RunLayout, accounting: Accounting, folder: Path) -> None:
    """Write every format, README.md and accounting.json into an empty folder."""
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
    """Clean up after a writer that was killed: restore the last complete `dataset`, and remove unfinished ones."""
    if (run / OLD).exists() and not (run / NAME).exists():
        (run / OLD).rename(run / NAME)
    for leftover in (run / OLD, run / NEW):
        if leftover.exists():
            shutil.rmtree(leftover)


def swap(run: Path) -> None:
    """Put the complete `.dataset.new` in the place of `dataset`."""
    os.sync()
    if (run / NAME).exists():
        (run / NAME).rename(run / OLD)
    (run / NEW).rename(run / NAME)
    if (run / OLD).exists():
        shutil.rmtree(run / OLD)
