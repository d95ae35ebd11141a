"""What a run will do: its stages in order, their fingerprints, which shards are there and why others are not.

`capfilt retry` makes another folder of pairs beside the first, and from there on everything again, but for shards of
captions and scores whose inputs are the same files (`capfilt.engine.reuse`).

A fingerprint is made from the stage's version, what of the pipeline determines its output, the digest of its weights
and the fingerprints of its inputs; it names the stage's folder, so that a changed setting never mixes with old output.
`pairs` alone has no fingerprint in its name: a run is a run over one ingestion, and another one is refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capfilt.config.pipeline import ModelSettings, Pipeline
from capfilt.config.source import source_name
from capfilt.engine.steps import Plan, Step
from capfilt.errors import ConfigError
from capfilt.models.digest import weights_digest
from capfilt.sources import open_source
from capfilt.stages.base import Stage
from capfilt.stages.caption import CaptionStage
from capfilt.stages.dedup import DedupStage
from capfilt.stages.emit import EmitStage
from capfilt.stages.ingest import IngestStage
from capfilt.stages.near import NearStage
from capfilt.stages.score import ScoreStage
from capfilt.stages.select import SelectStage
from capfilt.store.fingerprint import changes, fingerprint
from capfilt.store.layout import RunLayout, ShardSpec
from capfilt.store.run_folder import read_json

STAGES: tuple[type[Stage], ...] = (IngestStage, NearStage, CaptionStage, ScoreStage, DedupStage, SelectStage, EmitStage)
"""In the order in which a row passes them."""
_FOLDERS = {"select": "candidates-{}", "emit": "dataset"}


def out_of(pipeline: Pipeline, out: str | Path | None) -> Path:
    """The run's folder: as given, or that of `base`, or runs/<name>."""
    return Path(out or pipeline.base or Path("runs") / pipeline.name)


def make_plan(pipeline: Pipeline, run: Path, last: RunLayout | None = None) -> Plan:
    """Opens the sources and reads the models' files; runs nothing, writes nothing.

    Args:
        pipeline: the pipeline.
        run: its folder; need not exist.
        last: the run's last layout, for a plan that takes `pairs` and the weights as they are and reads neither again.

    Raises:
        ConfigError: a source or model that is not there, or a `pairs` folder made otherwise.
    """
    run = run.resolve()
    if last is None:
        units, identity = _look_at_sources(pipeline, run)
    else:
        units, identity = last.shards, None
    digests = _digests(pipeline, last)
    known = (read_json(run / "run.json") or {}).get("materials", {})
    folders: dict[str, str] = {}
    prints: dict[str, str] = {}
    steps = []
    again = retries(run)
    for stage in STAGES:
        settings = stage.settings(pipeline)
        if settings is None:
            continue
        material = {
            "version": stage.version,
            "settings": settings,
            "weights": digests.get(stage.name),
            "inputs": {name: prints[name] for name in stage.inputs if name in prints},
        }
        if stage.name == "ingest":
            material = _pairs_material(material, identity, run) | ({"retry": again} if again else {})
        prints[stage.name] = fingerprint(material)
        folders[stage.name] = _FOLDERS.get(stage.name, stage.name + "-{}").format(prints[stage.name])
        folders["ingest"] = pairs_folder(again)
        layout = RunLayout(pipeline, run, units, dict(folders), digests, pairs_folder(again - 1) if again else None)
        todo = _todo(layout, stage, prints[stage.name])
        why = _why(layout, stage, todo, known.get(stage.name), material)
        steps.append(Step(stage, prints[stage.name], material, todo, why))
    return Plan(layout, tuple(steps))


def retries(run: Path) -> int:
    """How many times `capfilt retry` was asked of a run."""
    return int((read_json(run / "retry.json") or {}).get("times", 0))


def pairs_folder(times: int) -> str:
    """pairs, pairs-retry1, ..."""
    return f"pairs-retry{times}" if times else "pairs"


def _look_at_sources(pipeline: Pipeline, run: Path) -> tuple[tuple[ShardSpec, ...], list[Any]]:
    readers = [(source_name(source), open_source(source, pipeline.ingest, run)) for source in pipeline.sources]
    units = tuple(unit for _, reader in readers for unit in reader.shard_specs(pipeline.ingest.rows_per_shard))
    return units, [[name, reader.identity()] for name, reader in readers]


def _digests(pipeline: Pipeline, last: RunLayout | None) -> dict[str, str]:
    """Of each model's weights; those that the last layout has under the same settings are not read again."""
    found = {}
    for name in ("caption", "score"):
        use: ModelSettings | None = getattr(pipeline, name)
        if use is not None and last is not None and use == getattr(last.pipeline, name):
            found[name] = last.digests[name]
        elif use is not None:
            found[name] = weights_digest(use.model, use.revision, use.tokenizer)
    return found


def _pairs_material(material: dict[str, Any], identity: list[Any] | None, run: Path) -> dict[str, Any]:
    """With the sources' identity; refused where `pairs` was made from another one."""
    found = read_json(run / "pairs" / "fingerprint.json")
    if identity is None:
        if found is None:
            raise ConfigError(f"{run}: no pairs there; `capfilt run` makes them")
        return found
    material = {**material, "sources": identity}
    if found is not None and found != material:
        told = "\n  ".join(changes(found, material))
        raise ConfigError(
            f"{run}/pairs was made from other input or settings:\n  {told}\n"
            f"take another --out, or remove {run} to begin again"
        )
    return material


def _todo(layout: RunLayout, stage: type[Stage], print_: str) -> tuple[int, ...]:
    if stage.name == "emit":
        return () if (read_json(layout.run / "dataset.json") or {}).get("fingerprint") == print_ else (0,)
    missing = tuple(i for i in range(len(layout.shards)) if not layout.shard(stage.name, i).is_file())
    return missing if stage.scope == "shard" else missing[:1] and (0,)


def _why(layout: RunLayout, stage: type[Stage], todo: Sequence[int], known: Any, material: dict[str, Any]) -> str:
    if not todo:
        return "done"
    if known is None:
        return "new"
    if known != material:
        own = changes(known | {"inputs": None}, material | {"inputs": None})
        before = known.get("inputs", {})
        fed = [name for name, print_ in material["inputs"].items() if before.get(name) != print_]
        return "; ".join(own + ([f"{' and '.join(fed)} changed"] if fed else []))
    return "unfinished" if stage.scope == "all" else f"{len(todo)} of {len(layout.shards)} shards are missing"
