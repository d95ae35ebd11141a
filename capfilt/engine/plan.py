"""What a run will do: its stages in order, their fingerprints, which shards exist and why others are missing.

A fingerprint is made from the stage's version, what of the pipeline determines its output, the digest of its weights
and the fingerprints of its inputs; it names the stage's folder, so that a changed setting never mixes with old output.
The folder of the stage that reads the sources (`pairs`) has no fingerprint in its name: a run has one ingestion, and
other sources or ingest settings are refused. `capfilt retry` writes the pairs to a new folder next to the first. All
later stages are then computed again, except shards of captions and scores with identical inputs
(`capfilt.engine.reuse`).
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capfilt.config.pipeline import Pipeline
from capfilt.config.source import source_name
from capfilt.engine.steps import Plan, Step
from capfilt.errors import ConfigError
from capfilt.inference.fingerprint import resolve_models
from capfilt.models.digest import weights_digest
from capfilt.models.registry import judge_scores
from capfilt.selection.check import check_policy
from capfilt.sources import open_source
from capfilt.stages.base import Stage, StageSpec
from capfilt.stages.catalog import STAGES
from capfilt.store.fingerprint import changes, fingerprint
from capfilt.store.layout import RunLayout, ShardSpec
from capfilt.store.run_folder import RunFolder, read_json


def out_of(pipeline: Pipeline, out: str | Path | None) -> Path:
    """Return the run's folder: as given, or that of `base`, or runs/<name>."""
    return Path(out or pipeline.base or Path("runs") / pipeline.name)


def make_plan(pipeline: Pipeline, folder: RunFolder, last: RunLayout | None = None) -> Plan:
    """Plan a run. Opens the sources and reads the models' files; runs and writes nothing.

    Args:
        pipeline: what to run.
        folder: the run's folder; it need not exist.
        last: the run's last layout, for a plan that takes pairs and weights as they are and reads neither again.

    Raises:
        ConfigError: a source or model that does not exist, a policy that reads a score which no judge writes, or a
            `pairs` folder that was made from other sources or settings.
        DataError: a source or an evaluation set that cannot be read.
        CheckpointError: a model's files are missing or damaged.
    """
    check_resources(pipeline)
    _check_scores(pipeline, last)
    pipeline = resolve_models(pipeline)
    if last is None:
        shards, identity = _look_at_sources(pipeline, folder.path)
    else:
        shards, identity = last.shards, None
    digests = _digests(pipeline, last)
    inputs, fingerprints = _fingerprints(pipeline, folder, digests, identity)
    specs = {stage.spec.name: stage.spec for stage in STAGES}
    folders = {name: _folder(specs[name], fingerprints[name], folder.retries) for name in inputs}
    previous = _folder(STAGES[0].spec, "", folder.retries - 1) if folder.retries else None
    layout = RunLayout(pipeline, folder.path, shards, folders, digests, fingerprints, previous)
    known = folder.facts.get("materials", {})
    stages = [stage for stage in STAGES if stage.spec.name in inputs]
    return Plan(layout, tuple(_step(layout, stage, inputs[stage.spec.name], known) for stage in stages))


def check_resources(pipeline: Pipeline) -> None:
    """Raise ConfigError for `resources` of a stage that does not exist."""
    names = [stage.spec.name for stage in STAGES]
    for name in pipeline.resources:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"stages are {', '.join(names)}"
            raise ConfigError(f"resources.{name}: no such stage; {hint}")


def _check_scores(pipeline: Pipeline, last: RunLayout | None) -> None:
    """Raise ConfigError for a selection that reads a score which no judge writes."""
    scores: frozenset[str] = frozenset()
    if pipeline.score is not None:
        try:
            scores = judge_scores(pipeline.score)
        except ConfigError:
            if last is None:
                raise
            return  # the judge of a finished run is gone; its scores are stored
    check_policy(pipeline.select, scores)


def _folder(spec: StageSpec, fingerprint: str, retries: int) -> str:
    """Name a stage's folder: pairs, pairs-retry1, caption-<fp>, ..."""
    again = f"-retry{retries}" if retries and not spec.inputs else ""
    return spec.output.folder_name(fingerprint) + again


def _look_at_sources(pipeline: Pipeline, run: Path) -> tuple[tuple[ShardSpec, ...], list[Any]]:
    """Return the shards of all sources, and per source [name, identity of its content]."""
    readers = [(source_name(source), open_source(source, pipeline.ingest, run)) for source in pipeline.sources]
    specs = tuple(spec for _, reader in readers for spec in reader.shard_specs(pipeline.ingest.rows_per_shard))
    return specs, [[name, reader.identity()] for name, reader in readers]


def _digests(pipeline: Pipeline, last: RunLayout | None) -> dict[str, str]:
    """Digest each stage's weights; those that the last layout has under the same settings are not read again."""
    found = {}
    for spec in (stage.spec for stage in STAGES):
        use = spec.model(pipeline)
        if use is not None and last is not None and use == spec.model(last.pipeline):
            found[spec.name] = last.digests[spec.name]
        elif use is not None:
            found[spec.name] = weights_digest(use.model, use.revision, use.tokenizer)
    return found


def _fingerprints(
    pipeline: Pipeline, folder: RunFolder, digests: dict[str, str], identity: list[Any] | None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return stage -> what its fingerprint is made from, and stage -> fingerprint, without stages that are left out."""
    found: dict[str, dict[str, Any]] = {}
    fingerprints: dict[str, str] = {}
    for spec in (stage.spec for stage in STAGES):
        settings = spec.settings(pipeline)
        if settings is None:
            continue
        own = {
            "version": spec.version,
            "settings": settings,
            "weights": digests.get(spec.name),
            "inputs": {one.stage: fingerprints[one.stage] for one in spec.inputs if one.stage in fingerprints},
        }
        if not spec.inputs:
            own = _with_sources(own, identity, folder.path / spec.output.folder)
            own |= {"retry": folder.retries} if folder.retries else {}
        found[spec.name], fingerprints[spec.name] = own, fingerprint(own)
    return found, fingerprints


def _with_sources(own: dict[str, Any], identity: list[Any] | None, pairs: Path) -> dict[str, Any]:
    """Add the sources' identity. Raises ConfigError where `pairs` was made from another one."""
    found = read_json(pairs / "fingerprint.json")
    if identity is None:
        if found is None:
            raise ConfigError(f"{pairs.parent}: the run has no pairs yet; `capfilt run` writes them")
        return found
    own = {**own, "sources": identity}
    if found is not None and found != own:
        differences = "\n  ".join(changes(found, own))
        raise ConfigError(
            f"{pairs} was made from other input or settings:\n  {differences}\n"
            f"take another --out, or remove {pairs.parent} to start again"
        )
    return own


def _step(layout: RunLayout, stage: type[Stage], inputs: dict[str, Any], known: dict[str, Any]) -> Step:
    name = stage.spec.name
    todo = _todo(layout, stage.spec)
    return Step(stage, layout.fingerprints[name], inputs, todo, _why(layout, stage.spec, todo, known.get(name), inputs))


def _todo(layout: RunLayout, spec: StageSpec) -> tuple[int, ...]:
    """Return the indices of the tasks whose output does not exist."""
    if spec.table is None:
        return () if spec.finished(layout, layout.fingerprints[spec.name]) else (0,)
    missing = tuple(i for i in range(len(layout.shards)) if not layout.shard(spec.name, i).is_file())
    return missing if spec.tasks == "per shard" else missing[:1] and (0,)


def _why(layout: RunLayout, spec: StageSpec, todo: Sequence[int], known: Any, inputs: dict[str, Any]) -> str:
    if not todo:
        return "done"
    if known is None:
        return "new"
    if known != inputs:
        own = changes(known | {"inputs": None}, inputs | {"inputs": None})
        before, after = known.get("inputs", {}), inputs["inputs"]
        changed = [name for name in {**after, **before} if before.get(name) != after.get(name)]
        return "; ".join(own + ([f"{' and '.join(changed)} changed"] if changed else []))
    return "unfinished" if spec.tasks == "one" else f"{len(todo)} of {len(layout.shards)} shards are missing"
