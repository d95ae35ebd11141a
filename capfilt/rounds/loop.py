"""`capfilt run` of a pipeline that trains: round after round, everything that is there under its fingerprint skipped.

A round is an ordinary run in RUN/round-K over the pairs of RUN, then three trainings, a measurement and the export of
its models, which take the captioner's and the filter's places in the next. A killed training goes on from its last
checkpoint; nothing that is finished is done again.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from capfilt import api
from capfilt.config.pipeline import Pipeline
from capfilt.engine.plan import out_of
from capfilt.errors import ConfigError
from capfilt.rounds.export import NAMES, export
from capfilt.rounds.measure import measure
from capfilt.rounds.training_set import TrainingSet, write_training_set
from capfilt.rounds.trainings import Training, check, trainings
from capfilt.store.fingerprint import canonical, fingerprint
from capfilt.store.run_folder import RunFolder, read_json
from capfilt.store.shards import file_sha256, write_atomic

SHARED = ("pairs", "lists")
"""Made once: folders of RUN that every round's folder links to."""


@dataclass(frozen=True)
class Round:
    """A finished round."""

    number: int
    result: api.Result
    models: dict[str, Path]
    """pretrained, captioner, filter -> folder."""
    metrics: dict[str, Any]
    facts: dict[str, Any]
    """What loop.json says of it."""


def run_rounds(
    pipeline: Pipeline, out: str | Path | None = None, *, local: bool = False, console: Console | None = None
) -> list[Round]:
    """Run all rounds, or go on with them.

    Args:
        pipeline: one that trains.
        out: the loop's folder, by default runs/<name>.
        local: caption, score and train in this process, without Ray.
        console: where progress goes; nowhere by default.

    Raises:
        ConfigError, DataError, CheckpointError: something to mend. RunError, TrainingError: the machine, or a loss that
            is not finite; everything finished stays.
    """
    from capfilt.analysis.report.rounds import write_loop_report

    check(pipeline)
    run, rounds = out_of(pipeline, out).resolve(), list[Round]()
    if (run / "run.json").exists():
        raise ConfigError(f"{run}: an ordinary run is there, and rounds have a folder each; take another --out")
    with RunFolder(run).locked():
        for number in range(1, pipeline.rounds + 1):
            last = rounds[-1].models if rounds else {}
            rounds.append(_Loop(pipeline, run, number, last, local, console or Console(quiet=True)).run())
            facts = {"pipeline": pipeline.model_dump(mode="json"), "rounds": [one.facts for one in rounds]}
            write_atomic(run / "loop.json", canonical(facts) + "\n")
        write_loop_report(run)
    return rounds


def of_round(pipeline: Pipeline, number: int, models: dict[str, Path]) -> Pipeline:
    """The ordinary run of a round; `models` of the round before take the place of the pipeline's."""
    uses = {"caption": pipeline.caption, "score": pipeline.score}
    for stage, role in (("caption", "captioner"), ("score", "filter")) if models else ():
        own = {"model": str(models[role]), "revision": None, "tokenizer": None}
        uses[stage] = uses[stage] and uses[stage].model_copy(update=own)  # type: ignore[union-attr]
    apart = {"rounds": 1, "pretrain": None, "finetune_captioner": None, "finetune_filter": None, "evaluate": None}
    name = f"{pipeline.name}-round-{number}"
    return pipeline.model_copy(update={**uses, **apart, "name": name, "round": number})


class _Loop:
    """One round at work."""

    def __init__(
        self, pipeline: Pipeline, run: Path, number: int, last: dict[str, Path], local: bool, console: Console
    ) -> None:
        self.pipeline, self.number, self.last = pipeline, number, last
        self.run_folder, self.folder = run, round_folder(run, number)
        self.local, self.console = local, console

    def run(self) -> Round:
        self._say("caption, score, select, emit")
        link(self.run_folder, self.folder)
        own = of_round(self.pipeline, self.number, self.last)
        result = api.run(own, out=self.folder, local=self.local, console=self.console)
        training, print_ = self._training_set(result)
        trained = trainings(self.pipeline, self.folder, training, print_, self.last.get("pretrained"))
        for one in trained:
            self._train(one)
        metrics = self._measure(training, print_, trained)
        data = self._data(training, result)
        models = {NAMES[one.stage]: export(one, self.folder / "models", data, metrics) for one in trained}
        return Round(self.number, result, models, metrics, self._facts(result, print_, trained, metrics))

    def _training_set(self, result: api.Result) -> tuple[TrainingSet, str]:
        holdout = self.pipeline.evaluate.holdout if self.pipeline.evaluate else None
        material = {"version": 1, "candidates": result.layout.folders["select"], "holdout": holdout}
        print_ = fingerprint(material)
        return write_training_set(result.layout, self.folder / f"training-{print_}", holdout), print_

    def _train(self, one: Training) -> None:
        if read_json(one.folder / "done.json") is not None:
            return
        self._say(f"{one.stage}: {one.recipe.optim.epochs} epochs of {one.recipe.optim.global_batch} pairs a step")
        started = monotonic()
        _train(one, self.local)
        write_atomic(one.folder / "done.json", canonical({"seconds": round(monotonic() - started, 1)}))

    def _measure(self, training: TrainingSet, print_: str, trained: Iterable[Training]) -> dict[str, Any]:
        part = self.pipeline.evaluate
        if part is None:
            return {}
        by_stage = {one.stage: one for one in trained}
        pairs = print_ if part.pairs is None else file_sha256(Path(part.pairs))
        material = {"pairs": pairs, "text": part.text, "models": {k: one.fingerprint for k, one in by_stage.items()}}
        path, want = self.folder / "evaluate.json", fingerprint(material)
        found = read_json(path)
        if found is None or found.get("fingerprint") != want:
            self._say("evaluate")
            found = {"fingerprint": want, **measure(part, training, by_stage)}
            write_atomic(path, canonical(found) + "\n")
        return {name: value for name, value in found.items() if name != "fingerprint"}

    def _data(self, training: TrainingSet, result: api.Result) -> dict[str, Any]:
        texts = ", ".join(f"{n} {source}" for source, n in training.texts.items())
        return {
            "pipeline": self.pipeline.name,
            "round": self.number,
            "texts": texts,
            "pairs.parquet sha256": file_sha256(training.pairs),
            "candidates": result.layout.folders["select"],
            "captioner": result.layout.digests["caption"],
            "filter": result.layout.digests["score"],
        }

    def _facts(
        self, result: api.Result, print_: str, trained: Iterable[Training], metrics: dict[str, Any]
    ) -> dict[str, Any]:
        folders = {one.stage: one.folder.name for one in trained}
        counts = result.accounting.to_dict()
        return {"round": self.number, "training": print_, "folders": folders, "accounting": counts, "metrics": metrics}

    def _say(self, what: str) -> None:
        self.console.print(f"round {self.number} of {self.pipeline.rounds}: {what}", highlight=False, markup=False)


def round_folder(run: Path, number: int) -> Path:
    """RUN/round-K."""
    return run / f"round-{number}"


def link(run: Path, folder: Path) -> None:
    """Give a round's folder the shared ones of the loop."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        (run / name).mkdir(exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(Path("..") / name, target_is_directory=True)


def _train(one: Training, local: bool) -> None:
    """On Ray where there are several ranks or a cluster is named; else the same loop in this process."""
    if one.recipe.run.ranks > 1 or ("RAY_ADDRESS" in os.environ and not local):
        from capfilt.training.distributed import train_on_ray

        train_on_ray(one.recipe)
        return
    from capfilt.training.loop import train

    train(one.recipe)
