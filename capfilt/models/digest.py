"""Which weights a text came from: one short digest over the files that decide what a model computes.

Those are the files that the loader reads, in its order of preference: where safetensors are present, a
pytorch_model.bin beside them changes nothing and does not count, nor do README, logs and tokenizer_config.json. So a
clone, a hub cache and a copy of the bare necessities have one digest. Hashing takes 1 s per GB. A model without files
has a version in its card, of which its digest is made.
"""

import hashlib
import json
from pathlib import Path

from capfilt.models.hub import resolve, weight_files, without_files
from capfilt.store.shards import file_sha256

_CONFIG = ("config.json",)
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER = ("tokenizer.json", "vocab.txt")


def weights_digest(model: str, revision: str | None = None, tokenizer: str | None = None) -> str:
    """16 hex digits of sha256 over the sorted (file name, sha256 of its content).

    Args:
        model: as `hub.resolve` takes it.
        revision: commit of a hub id.
        tokenizer: folder or hub id whose vocabulary is used in place of the model's own.

    Raises:
        ConfigError: no such model or tokenizer. CheckpointError: a folder without weights.
    """
    if (version := without_files(model)) is not None:
        return hashlib.sha256(version.encode()).hexdigest()[:16]
    path = resolve(model, revision)
    files = [path] if path.is_file() else _model_files(path)
    words = path if tokenizer is None else resolve(tokenizer, weights=False)
    contents = sorted((file.name, file_sha256(file)) for file in files + _first(words, _TOKENIZER))
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]


def _model_files(folder: Path) -> list[Path]:
    return _first(folder, _CONFIG) + weight_files(folder) + _first(folder, _PROCESSOR)


def _first(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of the first pattern that any file fits: the others are not read."""
    found = (sorted(folder.glob(pattern)) for pattern in patterns)
    return next((files for files in found if files), [])
