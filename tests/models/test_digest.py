"""The digest names what a model computes: it changes with every file that is loaded and with nothing else."""

import shutil
from pathlib import Path

import pytest
import torch

from capfilt.errors import CheckpointError, ConfigError
from capfilt.models import hub
from capfilt.models.blip.adapter import Blip
from capfilt.models.digest import weights_digest

LOADED = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of tiny/filter."""
    return Path(shutil.copytree(hub.resolve("tiny/filter"), tmp_path / "filter"))


def test_same_files_same_digest(folder: Path) -> None:
    digest = weights_digest("tiny/filter")
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert weights_digest(str(folder)) == digest
    assert weights_digest("tiny/captioner") != digest


@pytest.mark.parametrize("name", LOADED)
def test_what_is_loaded_counts(folder: Path, name: str) -> None:
    before = weights_digest(str(folder))
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    assert weights_digest(str(folder)) != before


def test_what_is_not_loaded_does_not(folder: Path) -> None:
    """The bare files that count make the same model, and the others do not change the digest."""
    before, full = weights_digest(str(folder)), Blip.load(folder)
    for file in folder.iterdir():
        if file.name not in LOADED:
            file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"another framework's copy")
    assert weights_digest(str(folder)) == before
    pixels = torch.rand(1, 3, full.image_size, full.image_size, generator=torch.Generator().manual_seed(0))
    assert Blip.load(folder).score(pixels, [["a dog", "two cats"]]) == full.score(pixels, [["a dog", "two cats"]])


def test_tokenizer_given_apart(folder: Path, tmp_path: Path) -> None:
    """It takes the place of the model's own; the same vocabulary gives the same digest."""
    words = tmp_path / "words"
    words.mkdir()
    shutil.copy(folder / "tokenizer.json", words)
    assert weights_digest(str(folder), None, str(words)) == weights_digest(str(folder))
    (words / "tokenizer.json").unlink()
    shutil.copy(folder / "vocab.txt", words)
    assert weights_digest(str(folder), None, str(words)) != weights_digest(str(folder))


def test_official_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(b"weights")
    digest = weights_digest(str(file), None, str(folder))
    file.write_bytes(b"other weights")
    assert weights_digest(str(file), None, str(folder)) != digest


def test_sharded_weights(folder: Path) -> None:
    whole = weights_digest(str(folder))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"a")
    first = weights_digest(str(folder))
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"b")
    assert len({whole, first, weights_digest(str(folder))}) == 3


def test_errors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        weights_digest(str(folder))
    with pytest.raises(ConfigError, match="no such folder"):
        weights_digest("nowhere/at-all/x")
