"""The data set's card, README.md: YAML for `datasets` and the Hub, then what the data contain and how they were made.

It has no path, date or other trace of the machine: equal runs have equal cards.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from capfilt.config.pipeline import ModelSettings
from capfilt.config.source import source_name
from capfilt.selection.accounting import Accounting
from capfilt.selection.funnel import funnel_lines
from capfilt.selection.provenance import decoding_json, model_name
from capfilt.sinks.base import Counts
from capfilt.sinks.pairs import COLUMNS as PAIRS_COLUMNS
from capfilt.sinks.parquet import COLUMNS
from capfilt.store.fingerprint import canonical
from capfilt.store.layout import RunLayout
from capfilt.store.schema import CAPTIONS, SCORES, Column

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
_FILES = {"parquet": "data/*.parquet", "webdataset": "webdataset/*.tar", "pairs": "pairs/*.parquet"}
"""Format -> files that `datasets` loads; the first written format is used."""
_ABOUT = {
    "parquet": "`data/`: one row per pair, images inside",
    "webdataset": "`webdataset/`: tars of image, text and the text's history",
    "blip_json": "`blip_json/`: BLIP's lists, separate for web, synthetic and human texts",
    "pairs": "`pairs/`: uids and texts without images",
}


def card(layout: RunLayout, accounting: Accounting, emitted: dict[str, Counts]) -> str:
    """Return the text of README.md.

    Args:
        layout: of the run.
        accounting: its counts.
        emitted: format -> counts of its sink.
    """
    front = yaml.safe_dump(front_matter(layout, accounting.texts_kept, emitted), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---\n\n# {layout.pipeline.name}\n\n{_intro(accounting)}",
        "## Files\n\n" + "\n".join(_file_line(name, counts) for name, counts in emitted.items()),
        "## Use\n\n" + _use(emitted),
        "## Where rows and texts went\n\n" + _funnel(accounting),
        "## How it was made\n\n" + _made(layout),
        "## Columns\n\n" + _columns(COLUMNS if "parquet" in emitted else PAIRS_COLUMNS),
        "## Licence\n\n" + _LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


_LICENCE = (
    "The licences of images and texts are not known to the program that made this data set: they are those of the "
    "sources. State them here before you pass the data on."
)


def front_matter(layout: RunLayout, pairs: int, emitted: dict[str, Counts]) -> dict[str, Any]:
    """The card's YAML: how `datasets` loads the folder, and metadata for the Hub."""
    front: dict[str, Any] = {
        "pretty_name": layout.pipeline.name,
        "license": "other",
        "license_name": "unknown",
        "task_categories": ["image-to-text", "text-to-image"],
        "size_categories": [_SIZES[min(max(len(str(pairs)) - 3, 0), len(_SIZES) - 1)]],
    }
    loaded = next((name for name in _FILES if name in emitted), None)
    if loaded is not None:
        files = [{"split": "train", "path": _FILES[loaded]}]
        front["configs"] = [{"config_name": "default", "data_files": files}]
    if loaded == "parquet":
        splits = [{"name": "train", "num_bytes": emitted["parquet"]["bytes"], "num_examples": pairs}]
        front["dataset_info"] = {"features": [_feature(column) for column in COLUMNS], "splits": splits}
    return front


def _feature(column: Column) -> dict[str, str]:
    names = {"float": "float32", "struct<bytes: binary, path: string>": "image"}
    return {"name": column.name, "dtype": names.get(str(column.type), str(column.type))}


def _intro(accounting: Accounting) -> str:
    kept = ", ".join(f"{count.kept:,} {name}" for name, count in accounting.texts.items() if count.kept)
    return (
        f"{accounting.texts_kept:,} image-text pairs of {accounting.rows_kept:,} images ({kept or 'none kept'}), "
        "made by CapFilt as in BLIP (Li et al. 2022): a captioner adds synthetic texts, a filter removes texts, web "
        "and synthetic, that do not match their image."
    )


def _file_line(name: str, counts: Counts) -> str:
    numbers = ", ".join(f"{what.replace('_', ' ')} {n:,}" for what, n in counts.items())
    return f"- {_ABOUT[name]} ({numbers})"


def _use(written: Collection[str]) -> str:
    """How to open the first format that `datasets` can load, with `datasets` and with DuckDB."""
    loaded = next((name for name in _FILES if name in written), None)
    if loaded is None:
        return "The lists are plain JSON; paths of images are relative to them."
    given = '"webdataset", data_files="webdataset/*.tar"' if loaded == "webdataset" else '"THIS_FOLDER"'
    lines = f'from datasets import load_dataset\n\npairs = load_dataset({given}, split="train")\nprint(pairs[0])'
    parts = [f"```python\n{lines}\n```"]
    if loaded != "webdataset":
        query = f"SELECT origin, count(*), avg(itm) FROM '{_FILES[loaded]}' GROUP BY origin;"
        parts.append(f"In DuckDB:\n\n```sql\n{query}\n```")
    return "\n\n".join(parts)


def _made(layout: RunLayout) -> str:
    pipeline = layout.pipeline
    sources = ", ".join(f"{_plain(source_name(source))} ({source.type}, {source.role})" for source in pipeline.sources)
    lines = [f"Sources: {sources}"]
    if pipeline.caption is not None:
        use = pipeline.caption
        decoding = decoding_json(use.decoding, use.seed, 0)
        lines += [_model("Captioner", use, layout.digests[CAPTIONS.stage]), f"Captions per image: {use.samples}"]
        lines += [f"Decoding of sample 0: `{decoding}`"]
    if pipeline.score is not None:
        lines.append(_model("Filter", pipeline.score, layout.digests[SCORES.stage]))
    lines.append(f"Selection: `{canonical(pipeline.select.model_dump(mode='json', exclude_none=True))}`")
    dedup = pipeline.dedup.model_dump(mode="json", exclude={"decontaminate"})
    lines.append(f"Duplicates: `{canonical(dedup)}`")
    if pipeline.dedup.decontaminate:
        names = ", ".join(_plain(part.name or PurePath(part.path).stem) for part in pipeline.dedup.decontaminate)
        lines.append(f"Images of these evaluation sets are left out: {names}")
    return "\n".join(f"- {line}" for line in lines)


def _plain(name: str) -> str:
    """A name on one line, with markup escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(name.split()))


def _model(what: str, use: ModelSettings, digest: str) -> str:
    revision = f", revision `{use.revision}`" if use.revision else ""
    return f"{what}: `{model_name(use.model)}`{revision}, digest of its weights `{digest}`"


def _funnel(accounting: Accounting) -> str:
    lines = funnel_lines(accounting)
    rows = [(name.replace("  ", "- "), f"{n:,}", f"{n / of:.1%}" if of else "") for name, n, of in lines]
    return _table(("", "number", "share"), rows)


def _columns(columns: tuple[Column, ...]) -> str:
    return _table(("column", "type", "meaning"), [(f"`{c.name}`", f"`{c.type}`", c.description) for c in columns])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = (head, tuple("---" for _ in head), *rows)
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
