"""Reuse of shards that an earlier call computed with the same settings from the same input files.

After `capfilt retry` a few rows are new, and with them every fingerprint. A shard whose pairs and duplicate marks have
the same bytes as before would give the same captions and scores, and is not computed again. The comparison covers the
settings, weights and version in both folders' fingerprint.json, and the sha256 of every input shard.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capfilt.errors import DataError
from capfilt.stages.base import StageSpec
from capfilt.store.fingerprint import fingerprint
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import read_json
from capfilt.store.shards import link_shard, manifest, shard_name


def reuse(layout: RunLayout, spec: StageSpec, shard: int) -> bool:
    """Hard-link the shard from an earlier folder whose inputs are identical. Return whether it was linked.

    Only stages that run a model are reused; for the others the comparison would cost about as much as the work.
    """
    if spec.name not in layout.digests:
        return False
    own = read_json(layout.folder(spec.name) / "fingerprint.json") or {}
    want = _hashes([*map(layout.folder, _inputs(own))], shard)
    for folder, earlier in _earlier(layout, spec, own):
        inputs = [_folder_of(layout.run, spec, name, fp) for name, fp in _inputs(earlier).items()]
        exists = (folder / shard_name(shard)).is_file()
        if exists and want is not None and _hashes(inputs, shard) == want:
            link_shard(folder / shard_name(shard), layout.shard(spec.name, shard))
            return True
    return False


def _earlier(layout: RunLayout, spec: StageSpec, own: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the stage's folders, with their fingerprint inputs, that differ from its own in the inputs alone."""
    for folder in sorted(layout.run.glob(spec.output.folder_name("*"))):
        found = read_json(folder / "fingerprint.json") or {}
        alike = {**own, "inputs": None} == {**found, "inputs": None} and [*_inputs(own)] == [*_inputs(found)]
        if alike and folder != layout.folder(spec.name):
            yield folder, found


def _inputs(fingerprint_inputs: dict[str, Any]) -> dict[str, str]:
    """Return stage -> fingerprint, sorted by stage."""
    return dict(sorted(fingerprint_inputs.get("inputs", {}).items()))


def _folder_of(run: Path, spec: StageSpec, stage: str, fp: str) -> Path | None:
    """Return an input's folder with that fingerprint, found by name, else by fingerprint.json; None if none has it."""
    output = next(one for one in spec.inputs if one.stage == stage)
    if "{}" in output.folder_name("{}"):
        return run / output.folder_name(fp)
    found = (folder for folder in sorted(run.glob(output.folder + "*")) if _fingerprint_of(folder) == fp)
    return next(found, None)


def _fingerprint_of(folder: Path) -> str | None:
    found = read_json(folder / "fingerprint.json")
    return None if found is None else fingerprint(found)


def _hashes(folders: list[Path | None], shard: int) -> list[str] | None:
    """Return the sha256 of the folders' shards of that index; None if one is not there."""
    try:
        return [manifest(folder / shard_name(shard))["sha256"] for folder in folders if folder is not None]
    except DataError:
        return None
