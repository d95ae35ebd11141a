"""Digest of a model's weights, which identifies the model that wrote a text or a score.

It is computed over the files that the loader reads. A pytorch_model.bin beside safetensors does not count, because it
is not read; nor do README, logs and tokenizer_config.json. A clone, a hub cache and a copy of only the needed files
therefore have the same digest. Hashing takes 1 s per GB. The digest of a model without files is that of the version in
its card.
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
    """Return the first 16 hex digits of sha256 over the sorted list of (file name, sha256 of its content).

    Args:
        model: as in `hub.resolve`.
        revision: commit of a hub id.
        tokenizer: folder or hub id whose vocabulary is used in place of the model's own.

    Raises:
        ConfigError: no such model or tokenizer.
        CheckpointError: a folder without weights.
    """
    if (version := without_files(model)) is not None:
        return hashlib.sha256(version.encode()).hexdigest()[:16]
    path = resolve(model, revision)
    files = [path] if path.is_file() else _model_files(path)
    vocabulary = path if tokenizer is None else resolve(tokenizer, weights=False)
    contents = sorted((file.name, file_sha256(file)) for file in files + _first(vocabulary, _TOKENIZER))
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]


def _model_files(folder: Path) -> list[Path]:
    return _first(folder, _CONFIG) + weight_files(folder) + _first(folder, _PROCESSOR)


def _first(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of the first pattern that matches any; the loader does not read the others."""
    found = (sorted(folder.glob(pattern)) for pattern in patterns)
    return next((files for files in found if files), [])
