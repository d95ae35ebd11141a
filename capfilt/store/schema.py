"""Every column that capfilt stores: name, type, unit, range. The documentation's tables are generated from this list.

Promises: a sidecar has the rows of its pairs shard in the same order under the same uids; a stage adds columns and
drops no row; a row that a stage did not or could not process has nulls, and its `status` says why.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
CAPTION = pa.struct({"text": pa.string(), "logprob": pa.float32(), "sample": pa.int32()})


@dataclass(frozen=True)
class Column:
    """One stored column."""

    name: str
    type: pa.DataType
    description: str


@dataclass(frozen=True)
class StageOutput:
    """The output of a stage; other modules refer to the stage by it."""

    stage: str
    """Name of the stage, as in the pipeline file's `resources`."""
    folder: str = field(default="", kw_only=True)
    """Name of its folder in a run, `{}` for the fingerprint; by default `<stage>-<fingerprint>`."""

    def folder_name(self, fingerprint: str) -> str:
        """Return the name of its folder in a run."""
        return (self.folder or self.stage + "-{}").format(fingerprint)


@dataclass(frozen=True)
class ShardTable(StageOutput):
    """One kind of shard: the stage that writes it, its SQL view and its columns. Iterating gives the columns."""

    view: str
    """Name of the view in `capfilt sql`; tables with the same view replace each other, the later stage's wins."""
    columns: tuple[Column, ...]
    sidecar: bool = field(default=True, kw_only=True)
    """Whether it has the rows of `pairs` in the same order; `candidates` has one row per text instead."""

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)


ORIGINS = ("web", "synthetic", "human")
"""Where a text came from: its source, a captioner, or a source of human-annotated pairs."""

_UID = Column("uid", pa.string(), "first 16 hex digits of sha256 over (source name, key); equal over reruns and rounds")
_STATUS = Column("status", pa.string(), "ok | skipped (nothing to do for this row) | failed")
_ERROR = Column("error", pa.string(), "what went wrong, else null")

PAIRS = ShardTable(
    "ingest",
    "pairs",
    (
        _UID,
        Column("source", pa.string(), "name of the source"),
        Column("role", pa.string(), "web | human"),
        Column("key", pa.string(), "the row's key in its source"),
        Column("url", pa.string(), "where the image came from, if known"),
        Column("text", pa.string(), "the text as given (invalid UTF-8 repaired), or null"),
        Column("image", IMAGE, "the file's bytes untouched, its path; null where the row is quarantined or blocked"),
        Column("width", pa.int32(), "pixels, as decoded (EXIF rotation applied)"),
        Column("height", pa.int32(), "pixels"),
        Column("format", pa.string(), "JPEG | PNG | WEBP | GIF"),
        Column("sha256", pa.string(), "of the file's bytes, 64 hex digits"),
        Column("pixels_sha256", pa.string(), "of the decoded RGB pixels and their size, 64 hex digits"),
        Column("phash", pa.uint64(), "64-bit perceptual hash (imagehash.phash)"),
        Column(
            "meta", pa.string(), "JSON of the source's other understood columns (similarity, punsafe, ...), or null"
        ),
        Column("status", pa.string(), "ok | rejected (by a rule) | quarantined (cannot be processed)"),
        Column("reason", pa.string(), "image_too_small, text_empty, bomb, ...; null where ok"),
        Column("error", pa.string(), "the reason in full, else null"),
    ),
    folder="pairs",
)
_DUPLICATE = (
    Column("duplicate_of", pa.string(), "uid of the row that is kept in its place, or null"),
    Column("duplicate_kind", pa.string(), "key | exact | url_text | perceptual | semantic"),
    Column("similarity", pa.float32(), "1 for exact; 1 - distance / 64 for perceptual; cosine for semantic"),
)
NEAR = ShardTable("near", "duplicates", (_UID, *_DUPLICATE))
CAPTIONS = ShardTable(
    "caption",
    "captions",
    (_UID, Column("captions", pa.list_(CAPTION), "text, mean ln p per token, sample from 0"), _STATUS, _ERROR),
)
DEDUP = ShardTable(
    "dedup",
    "duplicates",
    (_UID, *_DUPLICATE, Column("contaminates", pa.string(), "evaluation set and key of the image it repeats")),
)
CANDIDATES = ShardTable(
    "select",
    "candidates",
    (
        _UID,
        Column("text", pa.string(), "the text; null where the row never had one"),
        Column("origin", pa.string(), "web | synthetic | human"),
        Column("model", pa.string(), "captioner of a synthetic text, else null"),
        Column("digest", pa.string(), "of that captioner's weights, 16 hex digits"),
        Column("decoding", pa.string(), "JSON: method and its settings, seed, sample; null except for synthetic texts"),
        Column("sample", pa.int32(), "number of the caption, from 0; null except for synthetic texts"),
        Column("logprob", pa.float32(), "mean ln p per token under the captioner; null except for synthetic texts"),
        Column("round", pa.int32(), "round of CapFilt that judged the text, from 1; 0 in a run without rounds"),
        Column("itc", pa.float32(), "raw cosine, -1 .. 1, no temperature; null where not judged"),
        Column("itm", pa.float32(), "softmax P(match), 0 .. 1; null where not judged"),
        Column("kept", pa.bool_(), "the verdict"),
        Column("reason", pa.string(), "why not kept, else null"),
    ),
    folder="candidates-{}",
    sidecar=False,
)

CALIBRATION = StageOutput("calibrate")
DATASET = StageOutput("emit", folder="dataset")


def score_columns(dim: int) -> tuple[Column, ...]:
    """Return the columns of the score stage; `dim`: length of the judge's image embedding."""
    return (
        _UID,
        Column("web_itc", pa.float32(), "the row's own text: raw cosine, -1 .. 1"),
        Column("web_itm", pa.float32(), "the row's own text: softmax P(match), 0 .. 1"),
        Column("mismatch_itm", pa.float32(), "human rows: another human row's text, softmax P(match)"),
        Column("caption_itc", pa.list_(pa.float32()), "one per caption, in order"),
        Column("caption_itm", pa.list_(pa.float32()), "one per caption, in order"),
        Column("image_embedding", pa.list_(pa.float16(), dim), "L2-normalised image feature of the judge"),
        _STATUS,
        _ERROR,
    )


SCORES = ShardTable("score", "scores", score_columns(1))
"""The length of `image_embedding` depends on the model; here it is 1."""


def arrow(columns: Iterable[Column]) -> pa.Schema:
    """Return the Arrow schema; an `image` column gets the metadata by which `datasets` shows it as an image."""
    schema = pa.schema([(column.name, column.type) for column in columns])
    return with_features(schema) if "image" in schema.names else schema


def with_features(schema: pa.Schema) -> pa.Schema:
    """Add the `huggingface` metadata to a schema; struct<bytes, path> columns become Image features."""
    features: dict[str, object] = {field.name: _feature(field.type) for field in schema}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> object:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    names = {"float": "float32", "double": "float64", "halffloat": "float16"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}
