"""capfilt's contender of the throughput benchmark: the work of its stages on one shard, without Ray.

Images are read from Parquet, decoded and resized in threads ahead of the model (`inference.rows.model_batches`),
captioned and judged with both texts, and the results are written to Parquet. A batch is divided among one lane per
core, as in a worker with several cores. `Engine.run` is what is timed.
"""

import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import torch

from benchmarks.throughput_inputs import PROMPT, Inputs
from capfilt.inference.batching import ON_CPU, ThreadLanes
from capfilt.inference.rows import Row, model_batches, prepared_of
from capfilt.media.images import decode_image
from capfilt.media.text import pre_caption
from capfilt.models.blip import Blip, Decoding
from capfilt.models.blip.precision import Precision, apply_precision
from capfilt.store.shards import ShardWriter, batches

MAX_PIXELS = 89_478_485
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("itc", pa.list_(pa.float32())),
        ("itm", pa.list_(pa.float32())),
    ]
)


def captioner(inputs: Inputs, new_tokens: int, precision: Precision = "fp32") -> Blip:
    """Load the captioner, set to captions of exactly `new_tokens` tokens."""
    return drawing(apply_precision(Blip.load(inputs.captioner), precision), new_tokens)


def drawing(blip: Blip, new_tokens: int) -> Blip:
    """Return a captioner with the same weights, set to captions of exactly `new_tokens` tokens."""
    other = copy(blip)
    length = len(blip.tokenizer.prompt(PROMPT)) + new_tokens
    other.decoding = Decoding(prompt=PROMPT, min_length=length, max_length=length)
    return other


def judge(inputs: Inputs, precision: Precision = "fp32") -> Blip:
    """Load the filter."""
    return apply_precision(Blip.load(inputs.filter), precision)


@dataclass
class Spent:
    """Seconds of one run, averaged over its lanes. The rest of `wall` is decoding, Parquet and waiting."""

    wall: float = 0.0
    vision: float = 0.0
    captions: float = 0.0
    match: float = 0.0

    @property
    def model(self) -> float:
        """Seconds inside the models, with tokenising (0.1 ms per text)."""
        return self.vision + self.captions + self.match


@dataclass
class Engine:
    """A captioner and a filter. With `shared` the filter judges by the captioner's image states."""

    captioner: Blip
    judge: Blip
    shared: bool = False
    samples: int = 1
    web_texts: int = 1
    batch_size: int = ON_CPU
    judged: bool = True
    """False: caption only."""
    lanes: ThreadLanes = field(default_factory=lambda: ThreadLanes(torch.get_num_threads()))
    spent: Spent = field(default_factory=Spent, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def run(self, shard: Path, out: Path, images: int, first: int = 0) -> float:
        """Process images `first` .. `first + images` of a Parquet shard into the sidecar `out`; return seconds."""
        self.spent = Spent()
        started = time.perf_counter()
        with ShardWriter(out, SCHEMA) as writer:
            rows = _rows(shard, first, images)
            for batch in model_batches(rows, self.batch_size * self.lanes.count, [self.captioner], MAX_PIXELS):
                for part in self.lanes.map(self._batch, batch):
                    writer.write(part)
        self.spent.wall = time.perf_counter() - started
        return self.spent.wall

    def _batch(self, rows: list[Row]) -> list[dict[str, Any]]:
        images, uids = prepared_of(rows), [row.uid for row in rows]
        states = self._timed("vision", lambda: self.captioner.encode(images))
        drawn = self._timed("captions", lambda: self.captioner.captions(states, uids, range(self.samples)))
        if not self.judged:
            return [
                {"uid": uid, "captions": [caption.text for caption in some]}
                for uid, some in zip(uids, drawn, strict=True)
            ]
        if not self.shared:
            states = self._timed("vision", lambda: self.judge.encode(images))
        captions = [[caption.text for caption in some] for some in drawn]
        texts = [[row.text or ""] * self.web_texts + some for row, some in zip(rows, captions, strict=True)]
        cleaned = [[pre_caption(text) for text in some] for some in texts]
        matches = self._timed("match", lambda: self.judge.match(states, cleaned))
        return [
            {"uid": uid, "captions": some, "itc": [m.itc for m in found], "itm": [m.itm for m in found]}
            for uid, some, found in zip(uids, captions, matches, strict=True)
        ]

    def _timed(self, part: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        seconds = (time.perf_counter() - started) / self.lanes.count
        with self._lock:
            setattr(self.spent, part, getattr(self.spent, part) + seconds)
        return result


def _rows(shard: Path, first: int, images: int) -> list[Row]:
    found = [record for part in batches(shard, ["uid", "text", "image"], 32) for record in part]
    return [
        Row(
            position=i,
            uid=record["uid"],
            role="web",
            text=record["text"],
            captions=None,
            asked=True,
            status="ok",
            image=record["image"],
        )
        for i, record in enumerate(found[first : first + images])
    ]


def breakdown(engine: Engine, inputs: Inputs, images: int, out: Path) -> dict[str, float]:
    """Return milliseconds per image of each part, run one after the other."""
    jpegs, uids = inputs.jpegs[:images], inputs.uids[:images]
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        spent[name] = 1e3 * (time.perf_counter() - started) / images
        return result

    pictures = timed("decode", lambda: [decode_image(jpeg) for jpeg in jpegs])
    pixels = timed("resize", lambda: engine.captioner.preprocess(pictures))
    states = timed("vision_captioner", lambda: engine.captioner.encode_images(pixels))
    drawn = timed("decode_steps", lambda: engine.captioner.captions(states, uids, [0]))
    judged = timed("vision_filter", lambda: engine.judge.encode_images(pixels))
    pairs = [[text, caption.text] for text, [caption] in zip(inputs.texts[:images], drawn, strict=True)]
    flat = [text for both in pairs for text in both]
    timed("itc", lambda: (engine.judge.embed(judged), engine.judge.embed_texts(flat)))
    index = [i for i in range(images) for _ in range(2)]
    timed("itm", lambda: engine.judge.itm_logits(judged, flat, index))
    timed("tokenise", lambda: engine.judge.tokenizer.ids(flat))
    timed("io", lambda: _io(inputs.shard, out, pairs, images))
    return {name: round(value, 2) for name, value in spent.items()}


def _io(shard: Path, out: Path, pairs: Sequence[Sequence[str]], images: int) -> None:
    rows = _rows(shard, 0, images)
    with ShardWriter(out, SCHEMA) as writer:
        records = zip(rows, pairs, strict=True)
        writer.write({"uid": row.uid, "captions": [pair[1]], "itc": [0.0], "itm": [0.0]} for row, pair in records)
