"""A tiny world for tests of training: a vocabulary, a MED of 80,000 weights, and pairs that it can learn in seconds."""

import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import settings
from PIL import Image, ImageDraw

from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.med import MED
from capfilt.models.blip.tokenizer import TextTokenizer, wordpiece
from tests.ray_cluster import connected_ray, ray_address  # noqa: F401
from tests.tiny_runs import make_layout, no_threads_left, pairs_row, picture, two_threads, write_sidecar  # noqa: F401

settings.register_profile("same", derandomize=True, deadline=None)  # a gate must not roll dice
settings.register_profile("search", max_examples=1000, deadline=None)  # pytest --hypothesis-profile=search
settings.load_profile("same")

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the processors
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Without pytest-xdist (`-p no:xdist`), accept its options of pyproject.toml and ignore them."""
    if not pluginmanager.hasplugin("xdist"):
        for option in ("--numprocesses", "--maxprocesses", "--dist"):
            parser.addoption(option, help="ignored: pytest-xdist is not there")
        parser.addoption("--no-loadscope-reorder", action="store_true", help="ignored: pytest-xdist is not there")


LONG = ("test_run", "test_ray_pool", "test_laion", "test_distributed", "test_caption_score", "test_loop", "test_parity")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that no worker is alone with one of them at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


TINY_COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 30),
    "white": (245, 245, 245), "grey": (128, 128, 128), "purple": (150, 30, 170), "orange": (250, 140, 20),
}  # fmt: skip
TINY_SHAPES = ("square", "disc", "bar")
TINY_VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "on", "black", "plain", "wall"]
TINY_VOCAB += [*TINY_COLOURS, *TINY_SHAPES]
TINY_SHAPE = {
    "vision_width": 32, "vision_layers": 2, "vision_heads": 2, "patch_size": 8, "text_width": 32, "text_layers": 2,
    "text_heads": 2, "text_mlp": 64, "max_positions": 24, "dropout": 0.1, "embed_dim": 16,
}  # fmt: skip


def draw(colour: str, shape: str) -> bytes:
    """A PNG of a coloured shape on black."""
    image = Image.new("RGB", (32, 32))
    pen, fill = ImageDraw.Draw(image), TINY_COLOURS[colour]
    if shape == "disc":
        pen.ellipse((4, 4, 28, 28), fill=fill)
    else:
        pen.rectangle((4, 4, 28, 28) if shape == "square" else (0, 12, 32, 20), fill=fill)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As stages and trainings set it, for sums equal to the bit; the number of threads is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but vocab.txt, without [DEC] and [ENC], as BERT's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in TINY_VOCAB), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rows: 24 images (8 colours, 3 shapes) with two texts each; the texts of one column are equally long."""
    kinds = [(colour, shape) for colour in TINY_COLOURS for shape in TINY_SHAPES]
    texts = ["a {} {}", "a picture of a {} {} on a black wall"]
    rows = [
        {
            "uid": f"{colour}-{shape}-{i}",
            "image": {"bytes": draw(colour, shape), "path": None},
            "image_id": f"{colour}-{shape}",
            "text": texts[0].format(colour, shape),
            "long": texts[i].format(colour, shape),
        }
        for i in range(2)
        for colour, shape in kinds
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    return path


@pytest.fixture
def tiny_med() -> Callable[..., tuple[MED, TextTokenizer]]:
    """tiny_med(encoder=True, decoder=True, dropout=0.0, max_tokens=20): a fresh MED, always the same, and tokenizer."""

    def make(
        encoder: bool = True, decoder: bool = True, dropout: float = 0.0, max_tokens: int = 20
    ) -> tuple[MED, TextTokenizer]:
        size = len(TINY_VOCAB) + 2
        text = TextConfig(size, 32, 2, 2, 64, 24, dropout=dropout, dec_id=size - 2, sep_id=3, pad_id=0)
        torch.manual_seed(0)
        med = MED(MEDConfig(VisionConfig(32, 2, 2, 128, 32, 8), text, 16, encoder, decoder))
        with torch.no_grad():
            for parameter in med.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        return med, TextTokenizer(wordpiece(TINY_VOCAB), text, max_tokens)

    return make


Recipes = Callable[..., Path]


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_pairs: Path, tiny_tokenizer: Path) -> Recipes:
    """tiny_recipe(kind, name, optim={...}, ...): a recipe file, `out` beside it; parts are merged into tiny defaults.

    A part that is None is left out. 48 pairs, batches of 8: an epoch has 6 steps.
    """

    def write(kind: str = "pretrain", name: str = "run", **parts: Any) -> Path:
        contrastive = kind != "captioner"
        raw: dict[str, Any] = {
            "recipe": kind,
            "out": str(tmp_path / name),
            "model": {"shape": TINY_SHAPE, "tokenizer": str(tiny_tokenizer)},
            "data": {"sources": [{"path": str(tiny_pairs), "image_id": "image_id"}], "max_tokens": 20},
            "augment": {"size": 32},
            "objective": {"queue_size": 16} if contrastive else {},
            "optim": {"lr": 1e-3, "warmup_steps": 2, "epochs": 2, "global_batch": 8, "schedule": "cosine"},
            "run": {"device": "cpu", "threads": 1, "log_every": 1, "checkpoint_every": 4},
        }
        for part, changes in parts.items():
            merged = isinstance(changes, dict) and isinstance(raw.get(part), dict)
            raw[part] = raw[part] | changes if merged else changes
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}))
        return path

    return write
