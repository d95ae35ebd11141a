"""Inputs of the throughput benchmark: random weights in BLIP's shape, JPEGs of real size, texts of usual length.

Speed does not depend on the values of weights, so both checkpoints are random (fixed seed). They are saved in the hub
layout, so that transformers, Data-Juicer and capfilt open the same files. The vocabulary has BERT's size and ids of
special tokens; its words are invented, one token each. The images are those of the bundled sample, resized to 640 x 480
with some noise, which gives JPEGs of the web's usual 80 to 100 kB.
"""

import io
import random
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from capfilt.media.images import decode_image
from capfilt.models.blip import Blip
from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.image import ImageProcessor
from capfilt.models.blip.med import MED
from capfilt.models.blip.tokenizer import TextTokenizer, wordpiece

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "data/sample/web/00000.parquet"
WORDS = 12
"""Words of a web text; with the prompt and both special tokens 14 to 16 tokens."""
PROMPT = "a picture of "

SHAPES = {
    "base": MEDConfig(),
    "middle": MEDConfig(VisionConfig(layers=4, image_size=224), TextConfig(layers=4)),
    "tiny": MEDConfig(
        VisionConfig(width=64, layers=2, heads=2, mlp_width=128, image_size=64),
        TextConfig(width=64, layers=2, heads=2, mlp_width=128),
        embed_dim=32,
    ),
}


@dataclass(frozen=True)
class Inputs:
    """Files and rows for every contender."""

    captioner: Path
    filter: Path
    shard: Path
    """Parquet: uid, text, image."""
    uids: list[str]
    jpegs: list[bytes]
    texts: list[str]


def make_inputs(folder: Path, shape: str, images: int, size: int | None = None) -> Inputs:
    """Create all inputs and write them below `folder`.

    Args:
        shape: a key of SHAPES.
        images: number of images.
        size: side of the model's input in pixels; None takes the shape's.
    """
    config = SHAPES[shape]
    if size is not None:
        config = replace(config, vision=replace(config.vision, image_size=size))
    captioner, judge = make_models(folder, config)
    jpegs, texts = make_jpegs(images), make_texts(images)
    uids = [f"{i:016x}" for i in range(images)]
    shard = folder / "pairs.parquet"
    pq.write_table(pa.table({"uid": uids, "text": texts, "image": jpegs}), shard, compression="zstd", row_group_size=32)
    return Inputs(captioner, judge, shard, uids, jpegs, texts)


def make_models(folder: Path, config: MEDConfig) -> tuple[Path, Path]:
    """Write a captioner and a filter, each with its own vision tower; return their folders."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer(wordpiece(vocabulary(config.text.vocab_size - 2)), config.text)
    processor = ImageProcessor(config.vision.image_size)
    captioner = MED(config.with_halves(encoder=False, decoder=True))
    judge = MED(config.with_halves(encoder=True, decoder=False))
    for name, med in (("captioner", captioner), ("filter", judge)):
        Blip(med, tokenizer, processor).save(folder / name)
    return folder / "captioner", folder / "filter"


def vocabulary(size: int) -> list[str]:
    """Return `size` tokens: BERT's special tokens at their ids, the prompt's words, then invented words."""
    special = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    consonants, vowels = "bcdfghjklmnprstvz", "aeiou"
    invented = ("".join(letters) for letters in product(consonants, vowels, consonants, vowels, consonants))
    return [*special, *PROMPT.split(), *islice(invented, size - len(special) - len(PROMPT.split()))]


def make_texts(count: int, words: int = WORDS) -> list[str]:
    """Return `count` texts of `words` words of the vocabulary."""
    known = vocabulary(30522)[200:]
    draw = random.Random(0)
    return [" ".join(draw.choices(known, k=words)) for _ in range(count)]


def make_jpegs(count: int) -> list[bytes]:
    """Return JPEGs of 640 x 480 pixels, quality 85, about 90 kB each."""
    stored = pq.read_table(PICTURES, columns=["image"])["image"].to_pylist()
    pictures = [row["bytes"] for row in stored if row and len(row["bytes"]) > 5_000]
    return [_jpeg(pictures[i % len(pictures)], i) for i in range(count)]


def _jpeg(data: bytes, seed: int) -> bytes:
    large = decode_image(data).resize((640, 480), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(seed).normal(0, 9, (480, 640, 1))
    noisy = np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=85)
    return file.getvalue()
