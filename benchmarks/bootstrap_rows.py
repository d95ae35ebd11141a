"""Compute the rows of the experiment, from shared artefacts: raw model, captioner, filter, captions and scores.

Each artefact is a file in the work folder, written atomically; a rerun computes what is missing. Rows share
artefacts: every row but `raw` builds on the raw model, and its captioner and filter.
"""

import copy
import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import bootstrap_judge as judging
from benchmarks.bootstrap_data import Row, settings_of
from benchmarks.bootstrap_model import Fit, Images, Pair, blip, build, fit
from benchmarks.bootstrap_recipe import Recipe
from benchmarks.bootstrap_stats import auc
from capfilt.models.blip import Decoding
from capfilt.models.blip.med import MED

Texts = list[list[str]]
"""Captions, one list per image."""
Scores = list[list[float]]
"""Cosines, one list per image."""


class Lab:
    """The artefacts and rows of one setting and seed."""

    def __init__(
        self, rows: Sequence[Row], images: Images, text: Path, work: Path, setting: str, seed: int, recipe: Recipe,
        tune: bool = False,
    ) -> None:  # fmt: skip
        self.rows, self.images, self.text, self.seed, self.recipe = rows, images, text, seed, recipe
        uids = [row.uid for row in rows]
        self.folder = work / recipe.fingerprint(tune, uids) / f"{setting}-{seed}"
        self.pairs = settings_of(rows, setting, seed, tune)
        self.human: list[Pair] = [(i, rows[i].human) for i in self.pairs.human]
        self.web: list[Pair] = list(zip(self.pairs.web, self.pairs.web_texts, strict=True))

    def artefact(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, from its JSON file if that exists."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            _write(file, lambda path: path.write_text(json.dumps(make())))
        return json.loads(file.read_text())

    def weights(self, name: str, make: Callable[[MED], None], start: str | None = None) -> MED:
        """Return a trained model, from its file if that exists; `start` is the model that training continues from."""
        med = self._fresh() if start is None else copy.deepcopy(self.model(start))
        file = self.folder / f"{name}.pt"
        if file.is_file():
            med.load_state_dict(torch.load(file, weights_only=True))
            return med.eval()
        make(med)
        _write(file, lambda path: torch.save(med.state_dict(), path))
        return med.eval()

    def _fresh(self) -> MED:
        return build(self.images, self.text, self.recipe.shape, self.seed)[0]

    @cached_property
    def tokenizer(self) -> Any:
        """The warm start's."""
        return build(self.images, self.text, self.recipe.shape, self.seed)[1]

    def pretrained(self, row: str) -> MED:
        """Train the model of a row, with the same steps, batch and seed for all rows."""
        start = "row-raw" if row == "continued" else None
        return self.weights(f"row-{row}", lambda med: self._fit(med, self.dataset(row), self.pretraining, 0), start)

    @property
    def pretraining(self) -> Fit:
        """Every row's."""
        r = self.recipe
        return Fit(r.steps, r.batch, r.lr, r.objective, every=r.every, lm_every=r.lm_every)

    def _fit(self, med: MED, pairs: Sequence[Pair], how: Fit, noise: int) -> None:
        fit(med, self.tokenizer, self.images, pairs, how, 1000 * self.seed + noise)

    def model(self, name: str) -> MED:
        """Return a model by name.

        captioner, filter, filter-2 and shared are fine-tuned from the raw model, captioner@ROW from the model of a row;
        row-ROW is the model of a row.
        """
        kind, _, row = name.partition("@")
        start, r = f"row-{row or 'raw'}", self.recipe
        if kind.startswith("row-"):
            return self.pretrained(kind.removeprefix("row-"))
        how, noise = {
            "captioner": (self._captioning, 1),
            "filter": (self._filtering(r.filter_steps, lm=0.0), 2),
            "filter-2": (self._filtering(r.filter_steps, lm=0.0), 3),
            "shared": (self._filtering(r.caption_steps), 4),
        }[kind]
        return self.weights(name, lambda med: self._fit(med, self.human, how, noise), start)

    @property
    def _captioning(self) -> Fit:
        r, only = self.recipe, {"itc": 0.0, "itm": 0.0, "label_smoothing": 0.0}
        objective = r.objective.model_copy(update=only)
        return Fit(
            r.caption_steps, r.batch, r.caption_lr, objective, r.caption_slow, free=True, tokens=r.caption_tokens
        )

    def _filtering(self, steps: int, **change: float) -> Fit:
        r = self.recipe
        return Fit(steps, r.batch, r.filter_lr, r.objective.model_copy(update=change), every=r.filter_every)

    def captions(self, model: str, count: int | None = None) -> Texts:
        """Sample `count` captions of each web image by nucleus sampling; by default the recipe's number."""
        decoding = judging.NUCLEUS.model_copy(update={"seed": self.seed})
        return self._captions(f"captions-{model}", model, decoding, count or self.recipe.captions)

    def _captions(self, name: str, model: str, decoding: Decoding, count: int) -> Texts:
        def make() -> Texts:
            captioner = blip(self.model(model), self.tokenizer)
            return judging.caption(captioner, self.images, self.pairs.web, decoding, range(count))

        found: Texts = self.artefact(f"{name}-{count}", make)
        return found

    def scores(self, model: str, name: str, texts: Texts) -> Scores:
        """Compute the cosine of each text with its web image, by the filter `model`."""

        def make() -> Scores:
            flat = [(row, text) for row, each in zip(self.pairs.web, texts, strict=True) for text in each]
            found = iter(judging.cosines(blip(self.model(model), self.tokenizer), self.images, flat).tolist())
            return [[next(found) for _ in each] for each in texts]

        result: Scores = self.artefact(f"scores-{model}-{name}", make)
        return result

    def kept(self, filters: Sequence[str], name: str, texts: Texts) -> list[Pair]:
        """Return the texts, with their images, whose cosine (mean over the filters) reaches the threshold."""
        scores, threshold = [self.scores(model, name, texts) for model in filters], self._threshold(name)
        found = []
        for place, (row, each) in enumerate(zip(self.pairs.web, texts, strict=True)):
            means = [float(np.mean([score[place][k] for score in scores])) for k in range(len(each))]
            found += [(row, text) for text, mean in zip(each, means, strict=True) if text and mean >= threshold]
        return found

    def _threshold(self, name: str) -> float:
        return self.recipe.web_threshold if name == "web" else self.recipe.caption_threshold

    def dataset(self, row: str) -> list[Pair]:
        """Return the training pairs of a row: human pairs, then the web and synthetic pairs that the row keeps."""
        match row:
            case "raw":
                return self.human + self.web
            case "human":
                return self.human
            case "filter":
                return self.human + self.kept(["filter"], "web", self._web)
            case "captioner":
                said = zip(self.pairs.web, self.captions("captioner"), strict=True)
                return self.human + self.web + [(image, text) for image, each in said for text in each if text]
            case "captioner+filter" | "continued":
                return self.human + self._both(["filter"], self.captions("captioner"), "captions")
            case "control":
                size = len(self.dataset("captioner+filter"))
                raw = self.human + self.web
                return (raw * (size // len(raw) + 1))[:size] if size > len(raw) else _thinned(raw, size, self.seed)
            case "beam":
                return self.human + self._both(
                    ["filter"], self._captions("captions-beam", "captioner", judging.BEAM, 1), "beam"
                )
            case "shared":
                return self.human + self._both(["shared"], self.captions("shared"), "captions")
            case "one-caption":
                return self.human + self._both(["filter"], [each[:1] for each in self.captions("captioner")], "one")
            case "five-captions":
                return self.human + self._both(["filter"], self.captions("captioner", count=5), "five")
            case "ensemble":
                return self.human + self._both(["filter", "filter-2"], self.captions("captioner"), "captions")
            case "two-rounds":
                first = "@captioner+filter"
                return self.human + self._both([f"filter{first}"], self.captions(f"captioner{first}"), "captions")
        raise AssertionError(row)

    def _both(self, filters: Sequence[str], texts: Texts, name: str) -> list[Pair]:
        return self.kept(filters, "web", self._web) + self.kept(filters, name, texts)

    @property
    def _web(self) -> Texts:
        return [[text] for text in self.pairs.web_texts]

    def result(self, row: str) -> dict[str, Any]:
        """Return the measured numbers of a row."""

        def make() -> dict[str, Any]:
            pairs, med = self.dataset(row), self.pretrained(row)
            texts = [self.rows[i].human for i in self.pairs.test]
            found = judging.test(blip(med, self.tokenizer), self.images, self.pairs.test, texts)
            return {"row": row, "pairs": len(pairs), "steps": self.recipe.steps, **self._noise(row), **found}

        out: dict[str, Any] = self.artefact(f"result-{row}", make)
        return out

    def _noise(self, row: str) -> dict[str, float | None]:
        """Return the noise ratio and, where the truth is known, how well the row's filter found it."""
        if row in ("raw", "human", "captioner", "control"):
            return {}
        model = {"shared": "shared", "two-rounds": "filter@captioner+filter"}.get(row, "filter")
        web = np.array(self.scores(model, "web", self._web))[:, 0]
        keep = web >= self.recipe.web_threshold
        found: dict[str, float | None] = {"web_noise": float(1 - keep.mean())}
        if row != "filter":
            name = {"beam": "beam", "one-caption": "one", "five-captions": "five"}.get(row, "captions")
            said = np.array(json.loads((self.folder / f"scores-{model}-{name}.json").read_text()))
            found["synthetic_noise"] = float((said < self.recipe.caption_threshold).mean())
        if self.pairs.exchanged is not None:
            own = ~np.array(self.pairs.exchanged)
            found["precision"] = float(own[keep].mean()) if keep.any() else None
            found["recall"] = float(keep[own].mean())
            itm = np.array(self.artefact(f"itm-{model}", lambda: self._matches(model)))
            found["auc"], found["itm_auc"] = (auc(score[own], score[~own]) for score in (web, itm))
        return found

    def _matches(self, model: str) -> list[float]:
        found: list[float] = judging.matches(blip(self.model(model), self.tokenizer), self.images, self.web).tolist()
        return found


def _thinned(pairs: list[Pair], size: int, seed: int) -> list[Pair]:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:size])
    return [pairs[i] for i in chosen]


def _write(file: Path, save: Callable[[Path], object]) -> None:
    """Write under a temporary name, then rename, so that a file that exists is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{os.getpid()}-{file.name}")
    save(temporary)
    temporary.replace(file)
