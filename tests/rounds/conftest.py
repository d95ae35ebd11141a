"""A loop of two short rounds on 60 pairs of the bundled sample, through the real command line, run once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from capfilt.cli import main
from tests.sample import SOURCES, write_slices


@pytest.fixture(scope="session")
def loop_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's file."""
    folder = tmp_path_factory.mktemp("loop")
    write_slices(folder, web=24, human=36)
    path = folder / "loop.yaml"
    path.write_text(yaml.safe_dump(_pipeline()))
    return path


def _pipeline() -> dict[str, Any]:
    part = {
        "data": {"max_tokens": 16},
        "augment": {"size": 128},
        "optim": {"lr": 1e-4, "schedule": "cosine", "epochs": 1, "global_batch": 8},
        "run": {"threads": 1, "checkpoint_every": 2, "log_every": 1},
    }
    first = {**part, "model": {"init": "tiny/pretrained"}, "objective": {"queue_size": 32}}
    return {
        "name": "loop",
        "rounds": 2,
        "sources": SOURCES,
        "ingest": {"rows_per_shard": 16},
        "caption": {"model": "tiny/captioner", "decoding": {"max_length": 10, "min_length": 4}},
        "score": {"model": "tiny/filter"},
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
