"""Warm starts, without the teachers' packages: a stand-in of the same shape takes EfficientNet's place."""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from capfilt.media.text import pre_caption
from capfilt.models.blip.checkpoint import save
from capfilt.models.blip.config import MEDConfig, TextConfig
from capfilt.models.blip.med import MED
from capfilt.training.warmstart import distill, joint, teacher_targets, views_loader
from capfilt.training.warmstart.heads import Heads
from capfilt.training.warmstart.text import choose_vocab, embeddings


class Teacher(nn.Module):
    """EfficientNet-Lite0's attributes and output shapes, with averages in place of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = lambda x: nn.functional.avg_pool2d(x, 2)
        self._bn0 = self._swish = nn.Identity()
        channels = [16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112]
        sides = [64, 32, 32, 16, 16, 8, 8, 8, 8, 8, 8]
        self._blocks = nn.ModuleList(Block(c, s) for c, s in zip(channels, sides, strict=True))

    def extract_features(self, x: torch.Tensor) -> torch.Tensor:
        return Block(1280, x.shape[-1] // 32)(x)


class Block(nn.Module):
    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x.float(), self.side).mean(1, keepdim=True)
        return pooled * torch.linspace(0.5, 1.5, self.channels)[:, None, None]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pairs: Path) -> Path:
    """Views of the tiny pairs, through the real script."""
    monkeypatch.setattr(teacher_targets, "teacher", Teacher)
    common = {"pairs": str(tiny_pairs), "basis": str(tmp_path / "basis.npy"), "threads": 1, "seed": 0}
    scores = {"min_score": None, "max_score": None}
    teacher_targets.fit_basis(argparse.Namespace(**common, **scores, channels=8))
    rest = {"out": str(tmp_path / "views"), "views": 2, "size": 128, "batch": 4, "shard": 0, "shards": 1}
    teacher_targets.run(argparse.Namespace(**common, **scores, **rest))
    return tmp_path / "views"


def test_views_have_the_stated_shapes(stored: Path) -> None:
    pixels, pooled, maps, inner = (np.load(stored / f"{n}.npy") for n in ("pixels", "pooled", "maps", "inner"))
    n = len(pixels)
    assert n > 2
    assert pixels.shape == (n, 128, 128, 3)
    assert pixels.dtype == np.uint8
    assert (pooled.shape, maps.shape, inner.shape) == ((n, 1280), (n, 64, 8), (n, 64, 272))
    assert json.loads((stored / "done.json").read_text())["views"] == 2


def test_boxes_lie_inside_the_image() -> None:
    for seed in range(200):
        x0, y0, x1, y1 = teacher_targets.crop_box(300, 70, random.Random(seed))
        assert 0 <= x0 < x1 <= 300
        assert 0 <= y0 < y1 <= 70
        assert 0.2 < (x1 - x0) * (y1 - y0) / (300 * 70) <= 1


def test_a_student_learns_and_its_tower_is_saved(stored: Path, tmp_path: Path) -> None:
    options = {"views": [f"{stored}:2"], "out": tmp_path / "out", "init": None, "val": str(stored), "steps": 12}
    options |= {"joint": None, "keep": 48}
    shape = {"batch": 8, "lr": 0.03, "layers": 4, "width": 64, "seed": 0, "threads": 1}
    distill.train(argparse.Namespace(**options, **shape))
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["val_pooled"] < lines[0]["val_pooled"]
    tower = distill.VisionTower(distill.VisionConfig(**json.loads((tmp_path / "out" / "vision.json").read_text())))
    tower.load_state_dict(load_file(tmp_path / "out" / "vision.safetensors"))


def test_cut_pictures_bring_their_cells_and_their_share_of_the_whole(stored: Path) -> None:
    batch = views_loader.StoredViews([str(stored)], [1.0]).batch(6, np.random.default_rng(0))
    pixels, pooled, maps, inner = views_loader.cutmix(batch, np.random.default_rng(1))
    foreign = (maps == batch[2].roll(1, 0)).all(-1) & (maps != batch[2]).any(-1)
    share = foreign.float().mean(1)
    assert 0 < share.max() < 1
    cells = foreign[share.argmax()]
    whole = share.max()
    assert torch.allclose(pooled, batch[1].lerp(batch[1].roll(1, 0), whole), atol=1e-4)
    row = int(share.argmax())
    taken = pixels[row] == batch[0].roll(1, 0)[row]
    patches = taken.all(0).unfold(0, 16, 16).unfold(1, 16, 16).flatten(2).all(-1).flatten()
    assert patches[cells].all()
    assert torch.equal(inner[row][cells], batch[3].roll(1, 0)[row][cells])


def test_jitter_keeps_pixels_in_range_and_changes_them() -> None:
    pixels = torch.rand(3, 3, 8, 8)
    found = views_loader.jittered(pixels)
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.equal(found, pixels)


def fake_sentences(texts: list[str]) -> np.ndarray:
    """(N, 384): a text's letters, hashed."""
    rows = [np.random.default_rng(list(text.encode())).standard_normal(384) for text in texts]
    return np.stack(rows).astype(np.float32)


def test_heads_agree_on_the_pairs_and_both_towers_learn_their_side(
    stored: Path, tiny_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joint, "COLUMNS", ("long", "text"))
    pairs = joint.TeacherPairs([str(stored)], fake_sentences)
    texts = pq.read_table(tiny_pairs)["long"].to_pylist()
    assert torch.equal(pairs.texts[:, 0], torch.from_numpy(fake_sentences([pre_caption(text) for text in texts])))
    assert sorted(pairs.rows.tolist()) == [row for row in range(len(texts)) for _ in range(2)]
    torch.manual_seed(0)
    heads = Heads(hidden=64, drop=0.0)
    joint.train(heads, pairs, argparse.Namespace(steps=60, batch=32, web=0.0))
    images, words = heads.images(pairs.features.float()), heads.texts(pairs.texts[pairs.rows, 0])
    assert joint.measure(images, words)["itc_auc"] > 0.6
    torch.save(Heads().state_dict(), tmp_path / "joint.pt")
    options = {
        "views": [str(stored)],
        "out": tmp_path / "out",
        "init": None,
        "val": str(stored),
        "steps": 3,
        "keep": 60,
    }
    shape = {"batch": 8, "lr": 0.03, "layers": 4, "width": 64, "seed": 0, "threads": 1}
    distill.train(argparse.Namespace(**options, **shape, joint=str(tmp_path / "joint.pt")))
    assert load_file(tmp_path / "out/proj.safetensors")["weight"].shape == (256, 64)
    assert "joint" in (tmp_path / "out/log.jsonl").read_text()


def test_measure_counts_a_tie_against_the_pair() -> None:
    images = torch.eye(10)
    assert joint.measure(images, images) == {"t2i_r1": 1.0, "t2i_r10": 1.0, "itc_auc": 1.0}
    assert joint.measure(torch.ones(10, 1), torch.ones(10, 1))["t2i_r1"] == 0.0


def test_a_checkpoints_tower_goes_on(stored: Path, tmp_path: Path) -> None:
    vision = distill.VisionConfig(64, 4, 1, 256, 128, 16)
    text = TextConfig(vocab_size=20, width=32, layers=1, heads=1, mlp_width=32, max_positions=8, dec_id=18, sep_id=3)
    med = MED(MEDConfig(vision, text, 16, encoder=True, decoder=False))
    save(med, tmp_path / "blip")
    student = distill.Student(vision, views_loader.StoredViews([str(stored)], [1.0]).batch(4, np.random.default_rng(0)))
    distill._load_start(student, tmp_path / "blip")
    assert all(torch.equal(a, b) for a, b in zip(student.tower.parameters(), med.vision.parameters(), strict=True))


def test_flips_move_pixels_and_cells_together(stored: Path) -> None:
    batch = views_loader.as_tensors([np.load(stored / f"{n}.npy") for n in ("pixels", "pooled", "maps", "inner")])
    torch.manual_seed(0)
    pixels, _, maps, _ = views_loader.flipped(batch)
    for i in range(len(pixels)):
        mirrored = bool((pixels[i] == batch[0][i].flip(2)).all())
        cells = batch[2][i].unflatten(0, (8, 8))
        assert torch.equal(maps[i].unflatten(0, (8, 8)), cells.flip(1) if mirrored else cells)


class Words:
    """What `choose_vocab` and `embeddings` use of a BERT tokenizer."""

    cls_token_id = 2

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [sum(map(ord, token)) % 50 for token in tokens]


def test_the_vocabulary_keeps_letters_and_the_most_used_pieces() -> None:
    vocab = choose_vocab(["cat dog cat", "[UNK] cat bird", "dog ##s"], Words(), 110)
    assert vocab[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"a", "##z", "9", "cat", "dog"} <= set(vocab)
    assert len(vocab) == len(set(vocab)) <= 108
    found = embeddings(vocab, Words(), torch.randn(50, 16), 8)
    assert found.shape == (len(vocab) + 2, 8)
    assert found.std().item() == pytest.approx(0.05, rel=1e-3)
