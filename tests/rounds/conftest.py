"""A loop of two short rounds on 60 pairs of the bundled sample, through the real command line, run once.

Its models are the bundled ones at 32 px with one layer a tower: a training takes a second.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from capfilt.cli import main
from capfilt.models.blip import Blip
from capfilt.models.blip.image import ImageProcessor
from capfilt.models.blip.med import MED
from tests.sample import SOURCES, write_slices


@pytest.fixture(scope="session")
def loop_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's file."""
    folder = tmp_path_factory.mktemp("loop")
    write_slices(folder, web=24, human=36)
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump(_pipeline(folder / "models")))
    return path


def _small_model(name: str, folder: Path) -> str:
    """Save the bundled model `name` with the first layer of each tower alone, at 32 px."""
    blip = Blip.load(f"tiny/{name}", image_size=32)
    config = blip.config
    med = MED(replace(config, vision=replace(config.vision, layers=1), text=replace(config.text, layers=1)))
    med.load_state_dict({key: value for key, value in blip.med.state_dict().items() if key in med.state_dict()})
    Blip(med, blip.tokenizer, ImageProcessor(32)).save(folder / name)
    return str(folder / name)


def _pipeline(models: Path) -> dict[str, Any]:
    part = {
        "data": {"max_tokens": 16},
        "augment": {"size": 32},
        "optim": {"lr": 1e-4, "schedule": "cosine", "epochs": 1, "global_batch": 8},
        "run": {"threads": 1, "checkpoint_every": 2, "log_every": 1},
    }
    first = {**part, "model": {"init": _small_model("pretrained", models)}, "objective": {"queue_size": 32}}
    return {
        "name": "loop",
        "rounds": 2,
        "sources": SOURCES,
        "ingest": {"rows_per_shard": 16},
        "caption": {"model": _small_model("captioner", models), "decoding": {"max_length": 10, "min_length": 4}},
        "score": {"model": _small_model("filter", models)},
        "pretrain": {"recipe": first, "weights": {"human": 2}},
        "finetune_captioner": {"recipe": part},
        "finetune_filter": {"recipe": {**part, "objective": {"queue_size": 32}}},
        "evaluate": {"holdout": 0.3},
    }


@pytest.fixture(scope="session")
def loop(loop_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished loop's folder; not to be written to."""
    out = tmp_path_factory.mktemp("finished") / "loop"
    assert main(["run", str(loop_file), "--local", "--out", str(out)]) == 0
    return out


@pytest.fixture
def made(loop: Path) -> Callable[[Path], dict[str, bytes]]:
    """made(folder): what the loop is for, file -> bytes: weights, metrics, cards, candidates, training sets."""

    def read(folder: Path) -> dict[str, bytes]:
        names = ("models/*/*", "evaluate.json", "candidates-*/*.parquet", "training-*/*.parquet")
        files = [path for name in names for path in sorted(folder.glob(f"round-*/{name}"))]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read
