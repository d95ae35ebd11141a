"""Where models are found, and what is said when they are not. No network: the hub is faked or offline."""

import re
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from capfilt.errors import ConfigError
from capfilt.models import hub

BASE = "Salesforce/blip-image-captioning-base"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models/ folder with tiny/filter in it."""
    folder = tmp_path / "models" / "tiny" / "filter"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "SHIPPED", (tmp_path / "models",))
    return folder


def test_folder_file_and_shipped_name(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(b"")
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path / "m.pth")) == tmp_path / "m.pth"
    assert hub.resolve("tiny/filter") == shipped
    assert hub.shipped() == ["tiny/filter"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tiny/filtr", r"did you mean tiny/filter\?"),
        ("Salesforce/blip-image-captioning-bse", rf"did you mean {BASE}\?"),
        ("somebody/something", r"revision: 40 hex digits"),
        ("/nowhere/model.pth", "no such folder, file or shipped model"),
        ("../nowhere", "no such folder, file or shipped model"),
        ("", "name a folder"),
    ],
)
def test_unknown(name: str, told: str, shipped: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        hub.resolve(name)


def test_moving_revision_is_refused() -> None:
    with pytest.raises(ConfigError, match="'main' can move"):
        hub.resolve(BASE, "main")


def test_pins_are_commits() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in hub.revisions().values())


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ConfigError, match=rf"{BASE}.*82a37760796d.*cannot be downloaded.*local folder") as caught:
        hub.resolve(BASE)
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)


def test_cached_snapshot_opens_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real client with the cache that it would have written; this commit has no safetensors."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--Salesforce--blip-image-captioning-base" / "snapshots" / hub.revisions()[BASE]
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    assert hub.resolve(BASE) == snapshot


class FakeHub:
    """`snapshot_download` of a repository that holds these files."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root, self.files = root, files

    def snapshot_download(self, name: str, *, revision: str, allow_patterns: list[str]) -> str:
        for file in self.files:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (self.root / file).write_text(f"{name}@{revision}")
        return str(self.root)

    @property
    def fetched(self) -> set[str]:
        return {path.name for path in self.root.iterdir()}


SMALL = {"config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt"}
WEIGHTS = {"pytorch_model.bin", "tf_model.h5"}


@pytest.mark.parametrize(
    ("files", "weights", "fetched"),
    [
        (SMALL | WEIGHTS, True, SMALL | {"pytorch_model.bin"}),
        (SMALL | WEIGHTS | {"model.safetensors"}, True, SMALL | {"model.safetensors"}),
        (SMALL | WEIGHTS | {"model.safetensors"}, False, SMALL),
    ],
)
def test_one_kind_of_weights_is_fetched(
    files: set[str], weights: bool, fetched: set[str], tmp_path: Path, monkeypatch: Any
) -> None:
    fake = FakeHub(tmp_path, sorted(files))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    assert hub.resolve(BASE, weights=weights) == tmp_path
    assert fake.fetched == fetched
    assert (tmp_path / "config.json").read_text() == f"{BASE}@{hub.revisions()[BASE]}"
