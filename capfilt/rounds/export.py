"""Export a round's models: the folder that the objective saved, and a card with data, recipe and metrics.

`hf upload NAME RUN/round-K/models/filter` puts a model on the Hub.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from capfilt.models.digest import weights_digest
from capfilt.rounds.trainings import KINDS, Training
from capfilt.store.run_folder import read_json
from capfilt.store.shards import write_atomic
from capfilt.training.objectives.base import HubCard
from capfilt.training.objectives.registry import find_objective

NAMES = {"pretrain": "pretrained", "finetune_captioner": "captioner", "finetune_filter": "filter"}
"""Stage -> folder below `models/`."""
_SHOWN = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "itc_auc", "itm_auc", "cider", "cider_nearest")


def export(trained: Training, folder: Path, data: Mapping[str, Any], metrics: Mapping[str, Any]) -> Path:
    """Copy a trained model to `folder`/<name> and write its card.

    Args:
        trained: a finished training.
        folder: the round's `models`.
        data: what the card says about the data: JSON values, with digests.
        metrics: as `measure` returns them; empty if the pipeline has no `evaluate`.

    Returns:
        The model's folder.
    """
    out = folder / NAMES[trained.stage]
    card = _card(trained, data, metrics)
    if (read_json(out / "training.json") or {}).get("fingerprint") == trained.fingerprint:
        write_atomic(out / "README.md", card)
        return out
    new = out.with_name(f".{out.name}.new")
    for leftover in (new, out):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(trained.model, new)
    (new / "README.md").write_text(card, encoding="utf-8")
    (new / "training.json").write_text(json.dumps({"fingerprint": trained.fingerprint}), encoding="utf-8")
    new.rename(out)
    return out


def _card(trained: Training, data: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    name = NAMES[trained.stage]
    about = find_objective(trained.recipe.objective.type).hub_card(KINDS[trained.stage])
    recipe = yaml.safe_dump(_recipe(trained), sort_keys=False)
    facts = {**data, "weights": weights_digest(str(trained.model)), "training": trained.fingerprint}
    return (
        "\n\n".join(
            [
                f"---\n{yaml.safe_dump(_front(about, name), sort_keys=False)}---",
                f"# {name}\n\n{about.about}",
                "## Data and digests\n\n" + _table(("what", "value"), list(facts.items())),
                "The licence of the weights is that of the data, which the program does not know; state it here.",
                "## Metrics\n\n" + (_metrics(name, metrics) or "None: the pipeline had no `evaluate`."),
                f"## Recipe\n\n`capfilt train` with the round's `training-*/pairs.parquet`:\n\n```yaml\n{recipe}```",
            ]
        )
        + "\n"
    )


def _front(card: HubCard, name: str) -> dict[str, Any]:
    """Return the card's YAML header, which the Hub reads."""
    front = {
        "library_name": card.library_name,
        "tags": [*card.tags, "capfilt", name],
        "pipeline_tag": card.pipeline_tag,
    }
    return {key: value for key, value in front.items() if value}


def _recipe(trained: Training) -> dict[str, Any]:
    """Return the recipe without this machine's paths."""
    found: dict[str, Any] = trained.recipe.model_dump(mode="json", exclude_none=True)
    found.pop("out")
    for key in find_objective(trained.recipe.objective.type).model_paths:
        if key in found["model"]:
            found["model"][key] = "/".join(Path(found["model"][key]).parts[-2:])
    for source in found["data"]["sources"]:
        source["path"] = Path(source["path"]).name
    return found


def _metrics(name: str, metrics: Mapping[str, Any]) -> str:
    rows = []
    for key in (f"{name}_{short}" for short in _SHOWN):
        if key in metrics:
            low, high = metrics.get(f"{key}_ci", ("", ""))
            interval = f"{low:.3f} - {high:.3f}" if low != "" else ""
            rows.append((key.removeprefix(f"{name}_"), f"{metrics[key]:.3f}", interval))
    return _table(("metric", "value", "95 % interval"), rows) if rows else ""


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
