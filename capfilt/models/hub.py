"""Finds the files of a model: a folder, an official `.pth` file, a shipped name, or a Hugging Face id."""

import re
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from capfilt.config.yaml_file import ROOTS
from capfilt.errors import CheckpointError, ConfigError
from capfilt.models.card import cards, find_card

SHIPPED = tuple(root / "models" for root in ROOTS)
"""Folders of shipped models: inside an installed wheel, or beside the package in a checkout."""

_WEIGHTS = (["model*.safetensors"], ["pytorch_model*.bin"])
_LAYOUTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")
_SMALL = ["*.json", "vocab.txt"]


def revisions() -> dict[str, str]:
    """Return hub id -> its pinned commit, from the cards. Any other id needs a `revision` from the user."""
    return {name: card.revision for name, card in cards().items() if card.revision is not None}


def resolve(model: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return a local folder with the model's files, or the file itself; a hub id is downloaded at a pinned commit.

    Args:
        model: a folder, a file, a shipped name (tiny/filter) or a hub id (owner/name). Code in it is not run.
        revision: commit of a hub id, 40 hex digits; by default that of `revisions`.
        weights: whether to download the weights as well; a tokenizer does not need them.

    Raises:
        ConfigError: no such folder or name, a hub id without a pinned revision, or no network.
    """
    if not str(model).strip():
        raise ConfigError(f"model {str(model)!r}: name a folder, a shipped model or a hub id")
    path = Path(model)
    if path.exists():
        return path
    for root in SHIPPED:
        if (root / model).is_dir():
            return root / model
    name = str(model)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) or (revision is None and name not in revisions()):
        raise ConfigError(_unknown(name))
    return _download(name, revision or revisions()[name], weights)


def without_files(model: str | Path) -> str | None:
    """Return the version that identifies a model without files, such as `fake`; None for a model with files."""
    card = find_card(model)
    return None if card is None or card.version is None else f"{card.system} {card.version}"


def is_here(model: str, revision: str | None = None) -> bool:
    """Return whether `resolve` needs no network: a path, a shipped name, or a hub id whose weights are in the cache."""
    if Path(model).exists() or any((root / model).is_dir() for root in SHIPPED) or without_files(model):
        return True
    from huggingface_hub import try_to_load_from_cache

    commit = revision or revisions().get(model)
    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(model, name, revision=commit), str) for name in names)


def endpoint() -> str:
    """Return the host name of the hub."""
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT


def weight_files(path: Path) -> list[Path]:
    """Return the files from which weights are read: the file itself, or those of a folder's preferred layout.

    Safetensors are preferred to pytorch_model.bin, one file to several.

    Raises:
        CheckpointError: the folder has no weights.
    """
    found = [[path]] if path.is_file() else [sorted(path.glob(pattern)) for pattern in _LAYOUTS]
    files = next((files for files in found if files), [])
    if not files:
        raise CheckpointError(
            f"{path}: no model.safetensors in this folder; a BLIP folder has config.json and safetensors"
        )
    return files


def shipped() -> list[str]:
    """Return the names of the shipped models, such as tiny/filter."""
    found = {p.parent.relative_to(root).as_posix() for root in SHIPPED for p in root.glob("*/*/config.json")}
    return sorted(found)


def _unknown(name: str) -> str:
    known = sorted({*shipped(), *cards()})
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return (
        f"model {name!r}: no such folder, file or shipped model{hint} Known: {', '.join(known)}. "
        "Any other hub id (owner/name) needs its commit (revision: 40 hex digits), so that runs can be repeated"
    )


def _download(name: str, revision: str, weights: bool) -> Path:
    """Download a model and return its folder; pytorch_model.bin only if the repository has no safetensors."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ConfigError(f"model {name!r}: revision {revision!r} can move; give the commit's 40 hex digits")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_SMALL))
        for patterns in _WEIGHTS if weights else ():
            snapshot_download(name, revision=revision, allow_patterns=patterns)
            if any(folder.glob(patterns[0])):
                break
    except Exception as error:
        raise ConfigError(
            f"model {name!r} at {revision[:12]}: not in the local cache and cannot be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); give a local folder instead"
        ) from error
    return folder
