"""Captions and scores that need not be made again: an earlier shard made the same way from the same input files.

After `capfilt retry` a few rows are new, and with them every fingerprint; but a shard whose pairs and marks are the
same bytes would only cost the models the same work again. Compared are the settings, weights and version in both
folders' fingerprint.json, and the sha256 of every input shard.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capfilt.errors import DataError
from capfilt.stages.base import Stage, parts
from capfilt.store.fingerprint import fingerprint
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import read_json
from capfilt.store.shards import manifest, same_shard, shard_name


def reuse(layout: RunLayout, stage: type[Stage], shard: int) -> bool:
    """Whether an earlier folder had this shard; then it has its second name in the job's own folder."""
    return all(_again(layout, part, shard) for part in parts(stage))


def _again(layout: RunLayout, stage: type[Stage], shard: int) -> bool:
    if stage.name not in layout.digests:
        return False
    own = read_json(layout.folder(stage.name) / "fingerprint.json") or {}
    want = _hashes([*map(layout.folder, _inputs(own))], shard)
    for folder, material in _earlier(layout, stage.name, own):
        inputs = [_made(layout.run, name, print_) for name, print_ in _inputs(material).items()]
        there = (folder / shard_name(shard)).is_file()
        if there and want is not None and _hashes(inputs, shard) == want:
            same_shard(folder / shard_name(shard), layout.shard(stage.name, shard))
            return True
    return False


def _earlier(layout: RunLayout, stage: str, own: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of the stage that were made the same way from other inputs."""
    for folder in sorted(layout.run.glob(f"{stage}-*")):
        material = read_json(folder / "fingerprint.json") or {}
        alike = {**own, "inputs": None} == {**material, "inputs": None} and [*_inputs(own)] == [*_inputs(material)]
        if alike and folder != layout.folder(stage):
            yield folder, material


def _inputs(material: dict[str, Any]) -> dict[str, str]:
    """Stage -> fingerprint, sorted by stage."""
    return dict(sorted(material.get("inputs", {}).items()))


def _made(run: Path, stage: str, print_: str) -> Path | None:
    """The folder with that fingerprint."""
    if stage != "ingest":
        return run / f"{stage}-{print_}"
    found = (folder for folder in sorted(run.glob("pairs*")) if _print(folder) == print_)
    return next(found, None)


def _print(folder: Path) -> str | None:
    material = read_json(folder / "fingerprint.json")
    return None if material is None else fingerprint(material)


def _hashes(folders: list[Path | None], shard: int) -> list[str] | None:
    """sha256 of the folders' shards of that index; None if one is not there."""
    try:
        return [manifest(folder / shard_name(shard))["sha256"] for folder in folders if folder is not None]
    except DataError:
        return None
