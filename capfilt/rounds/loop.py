"""Run a pipeline that trains, round after round. A part that is finished under the same fingerprint is not done again.

A round is an ordinary run in RUN/round-K over the pairs of RUN, followed by three trainings, a measurement and the
export of the models. Those models are the captioner and the filter of the next round. A killed training continues from
its last checkpoint.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from capfilt import api
from capfilt.analysis.report.rounds import write_loop_report
from capfilt.config.pipeline import Pipeline
from capfilt.engine.plan import out_of
from capfilt.errors import ConfigError
from capfilt.rounds.export import NAMES, export
from capfilt.rounds.measure import check_held_out, measure
from capfilt.rounds.training_set import TrainingSet, write_training_set
from capfilt.rounds.trainings import Training, check_trainings, round_trainings
from capfilt.store.fingerprint import canonical, fingerprint
from capfilt.store.run_folder import RunFolder, read_json
from capfilt.store.schema import CANDIDATES, CAPTIONS, SCORES
from capfilt.store.shards import file_sha256, write_atomic

SHARED = ("pairs", "lists")
"""Folders of RUN that every round's folder links to, so that they are written once."""


@dataclass(frozen=True)
class Round:
    """A finished round."""

    number: int
    """From 1."""
    result: api.Result
    models: dict[str, Path]
    """pretrained, captioner, filter -> folder."""
    metrics: dict[str, Any]
    """As `measure` returns them; empty if the pipeline has no `evaluate`."""
    facts: dict[str, Any]
    """The round's entry in loop.json."""


def run_rounds(
    pipeline: Pipeline, out: str | Path | None = None, *, local: bool = False, console: Console | None = None
) -> list[Round]:
    """Run all rounds, or continue an interrupted loop.

    Args:
        pipeline: one that trains.
        out: the loop's folder, by default runs/<name>.
        local: caption, score and train in this process, without Ray.
        console: shows the progress; by default it is not shown.

    Returns:
        The rounds, in order.

    Raises:
        ConfigError, DataError, CheckpointError: something that the user must fix.
        RunError, TrainingError: the machine fails, or a loss is not finite. Everything finished stays.
    """
    check_trainings(pipeline)
    check_held_out(pipeline.evaluate)
    run, rounds = out_of(pipeline, out).resolve(), list[Round]()
    if (run / "run.json").exists():
        raise ConfigError(f"{run}: this folder has an ordinary run, but rounds have a folder each; take another --out")
    with RunFolder(run).locked():
        for number in range(1, pipeline.rounds + 1):
            previous = rounds[-1].models if rounds else {}
            runner = _RoundRunner(pipeline, run, number, previous, local, console or Console(quiet=True))
            rounds.append(runner.run())
            facts = {"pipeline": pipeline.model_dump(mode="json"), "rounds": [one.facts for one in rounds]}
            write_atomic(run / "loop.json", canonical(facts) + "\n")
        write_loop_report(run)
    return rounds


def round_pipeline(pipeline: Pipeline, number: int, models: dict[str, Path]) -> Pipeline:
    """Return the pipeline of a round's ordinary run.

    Args:
        pipeline: the pipeline of the loop.
        number: the number of the round, from 1.
        models: captioner and filter of the round before, which replace the pipeline's; empty in the first round.
    """
    uses = {"caption": pipeline.caption, "score": pipeline.score}
    for stage, role in (("caption", "captioner"), ("score", "filter")) if models else ():
        own = {"model": str(models[role]), "revision": None, "tokenizer": None}
        uses[stage] = uses[stage] and uses[stage].model_copy(update=own)  # type: ignore[union-attr]
    no_training = {"rounds": 1, "pretrain": None, "finetune_captioner": None, "finetune_filter": None, "evaluate": None}
    name = f"{pipeline.name}-round-{number}"
    return pipeline.model_copy(update={**uses, **no_training, "name": name, "round": number})


class _RoundRunner:
    """Runs one round."""

    def __init__(
        self, pipeline: Pipeline, run: Path, number: int, previous: dict[str, Path], local: bool, console: Console
    ) -> None:
        """Keep the arguments of `run_rounds`; `previous`: the models of the round before, by name."""
        self.pipeline, self.number, self.previous = pipeline, number, previous
        self.run_folder, self.folder = run, round_folder(run, number)
        self.local, self.console = local, console

    def run(self) -> Round:
        self._print("caption, score, select, emit")
        link_shared_folders(self.run_folder, self.folder)
        own = round_pipeline(self.pipeline, self.number, self.previous)
        result = api.run(own, out=self.folder, local=self.local, console=self.console)
        training_set, data = self._training_set(result)
        trained = round_trainings(self.pipeline, self.folder, training_set, data, self.previous.get("pretrained"))
        for one in trained:
            self._train(one)
        metrics = self._measure(training_set, data, trained)
        about = self._about_data(training_set, result)
        models = {NAMES[one.stage]: export(one, self.folder / "models", about, metrics) for one in trained}
        return Round(self.number, result, models, metrics, self._facts(result, data, trained, metrics))

    def _training_set(self, result: api.Result) -> tuple[TrainingSet, str]:
        """Write the training set. Return it with its fingerprint."""
        holdout = self.pipeline.evaluate.holdout if self.pipeline.evaluate else None
        own = fingerprint({"version": 1, "candidates": result.layout.folders[CANDIDATES.stage], "holdout": holdout})
        return write_training_set(result.layout, self.folder / f"training-{own}", holdout), own

    def _train(self, one: Training) -> None:
        if read_json(one.folder / "done.json") is not None:
            return
        optim = one.recipe.optim
        self._print(f"{one.stage}: {optim.epochs} epochs of {optim.global_batch} pairs per step")
        started = monotonic()
        _train(one, self.local)
        write_atomic(one.folder / "done.json", canonical({"seconds": round(monotonic() - started, 1)}))

    def _measure(self, training_set: TrainingSet, data: str, trained: Iterable[Training]) -> dict[str, Any]:
        settings = self.pipeline.evaluate
        if settings is None:
            return {}
        by_stage = {one.stage: one for one in trained}
        pairs = data if settings.pairs is None else file_sha256(Path(settings.pairs))
        models = {stage: one.fingerprint for stage, one in by_stage.items()}
        own = fingerprint({"pairs": pairs, "text": settings.text, "models": models})
        path = self.folder / "evaluate.json"
        found = read_json(path)
        if found is None or found.get("fingerprint") != own:
            self._print("evaluate")
            found = {"fingerprint": own, **measure(settings, training_set, by_stage)}
            write_atomic(path, canonical(found) + "\n")
        return {name: value for name, value in found.items() if name != "fingerprint"}

    def _about_data(self, training_set: TrainingSet, result: api.Result) -> dict[str, Any]:
        """Return what the models' cards say about the data."""
        texts = ", ".join(f"{count} {origin}" for origin, count in training_set.texts.items())
        return {
            "pipeline": self.pipeline.name,
            "round": self.number,
            "texts": texts,
            "pairs.parquet sha256": file_sha256(training_set.pairs),
            "candidates": result.layout.folders[CANDIDATES.stage],
            "captioner": result.layout.digests[CAPTIONS.stage],
            "filter": result.layout.digests[SCORES.stage],
        }

    def _facts(
        self, result: api.Result, data: str, trained: Iterable[Training], metrics: dict[str, Any]
    ) -> dict[str, Any]:
        folders = {one.stage: one.folder.name for one in trained}
        counts = result.accounting.to_dict()
        return {"round": self.number, "training": data, "folders": folders, "accounting": counts, "metrics": metrics}

    def _print(self, what: str) -> None:
        self.console.print(f"round {self.number} of {self.pipeline.rounds}: {what}", highlight=False, markup=False)


def round_folder(run: Path, number: int) -> Path:
    """Return the folder of a round: RUN/round-K."""
    return run / f"round-{number}"


def link_shared_folders(run: Path, folder: Path) -> None:
    """Create a round's folder, with links to the folders that the rounds share."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        (run / name).mkdir(exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(Path("..") / name, target_is_directory=True)


def _train(one: Training, local: bool) -> None:
    """Train on Ray if there are several ranks or RAY_ADDRESS names a cluster, else in this process."""
    if one.recipe.run.ranks > 1 or ("RAY_ADDRESS" in os.environ and not local):
        from capfilt.training.distributed import train_on_ray

        train_on_ray(one.recipe)
        return
    from capfilt.training.loop import train

    train(one.recipe)
