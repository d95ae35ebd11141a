"""Numbers against transformers in fp32: its folders opened by us, ours opened by it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.models.blip import checkpoint
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.med import MED

SHAPES = ["wide-vision", "wide-text", "one-head"]
CLASSES = {"filter": BlipForImageTextRetrieval, "captioner": BlipForConditionalGeneration}
TOLERANCE = 1e-5
"""Measured: at tiny size at most 5e-7 (ITC), 2e-6 (ITM), 7e-6 (LM); at base size 8e-9, 1e-6, 3e-6."""


def check_filter(blip: Blip, reference: Any, pixels: Tensor, texts: list[str], atol: float, **kwargs: Any) -> float:
    states = blip.encode_images(pixels)
    itc = blip.embed(states) @ blip.embed_texts(texts).T
    itm = blip.itm_logits(states, texts, range(len(texts)))
    theirs = reference.itc(pixels, texts, **kwargs), reference.itm(pixels, texts, **kwargs)
    torch.testing.assert_close(itc, theirs[0], atol=atol, rtol=0)
    torch.testing.assert_close(itm, theirs[1], atol=atol, rtol=0)
    return max((itc - theirs[0]).abs().max().item(), (itm - theirs[1]).abs().max().item())


@torch.inference_mode()
def check_captioner(blip: Blip, reference: Any, pixels: Tensor, texts: list[str], atol: float, **kwargs: Any) -> float:
    ids, mask = blip.tokenizer.batch(texts)
    ours = blip.med.lm_logits(ids, blip.med.cross_kv(blip.encode_images(pixels)))
    theirs, their_mask = reference.lm(pixels, texts, **kwargs)
    assert torch.equal(mask, their_mask)
    torch.testing.assert_close(ours[mask], theirs[mask], atol=atol, rtol=0)
    return (ours[mask] - theirs[mask]).abs().max().item()


CHECKS = {"filter": check_filter, "captioner": check_captioner}


@pytest.mark.parametrize("kind", ["filter", "captioner"])
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_folder(
    kind: str, shape: str, folders: Any, reference: Any, pixels: Any, texts: list[str], tmp_path: Path
) -> None:
    """Its folder opened by us, and what we then save opened by it."""
    blip = Blip.load(folders(kind, shape))
    images = pixels(len(texts), blip.image_size)
    CHECKS[kind](blip, reference.open(folders(kind, shape), kind), images, texts, TOLERANCE)
    blip.save(tmp_path)
    CHECKS[kind](blip, reference.open(tmp_path, kind), images, texts, TOLERANCE)


def test_scores_differ_between_texts(folders: Any, pixels: Any, texts: list[str]) -> None:
    """The parity above is of numbers that depend on text and image."""
    blip = Blip.load(folders("filter"))
    rows = blip.score(pixels(2, 32), [texts, texts])
    for values in ([m.itc for m in rows[0]], [m.itm for m in rows[0]], [m.itm for m in rows[1]]):
        assert len({round(value, 6) for value in values}) == len(texts)
    assert rows[0][0].itm != pytest.approx(rows[1][0].itm, abs=1e-4)


@pytest.mark.parametrize("kind", ["filter", "captioner"])
def test_saved_names_are_transformers_own(kind: str, folders: Any, tmp_path: Path) -> None:
    """No missing and no unexpected tensors: the very names and values that transformers wrote."""
    Blip.load(folders(kind)).save(tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(folders(kind) / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def both_halves(folders: Any, folder: Path) -> Blip:
    """A pre-trained MED, from the filter's weights and fresh decoder parts."""
    half = Blip.load(folders("filter"))
    torch.manual_seed(3)
    med = MED(half.config.with_halves(encoder=True, decoder=True))
    med.load_state_dict(half.med.state_dict(), strict=False)
    Blip(med, half.tokenizer, half.processor).save(folder)
    return Blip.load(folder)


def test_pretrained_opens_as_filter(
    folders: Any, reference: Any, pixels: Any, texts: list[str], tmp_path: Path
) -> None:
    blip = both_halves(folders, tmp_path)
    assert blip.roles == {"captioner", "judge", "embedder"}
    check_filter(blip, reference.open(tmp_path, "filter"), pixels(len(texts), 32), texts, TOLERANCE)


def test_pretrained_round_trip_is_exact(folders: Any, tmp_path: Path) -> None:
    first = both_halves(folders, tmp_path / "a")
    first.save(tmp_path / "b")
    second = Blip.load(tmp_path / "b")
    assert second.config == first.config
    states = first.med.state_dict(), second.med.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("kind", ["filter", "captioner"])
def test_fp16_storage(kind: str, folders: Any, reference: Any, pixels: Any, texts: list[str], tmp_path: Path) -> None:
    """Stored in half, computed in fp32 by both; transformers follows config.json's dtype by default."""
    Blip.load(folders(kind)).save(tmp_path, torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    theirs = reference.open(tmp_path, kind)
    assert {p.dtype for p in theirs.model.parameters()} == {torch.float32}
    blip = Blip.load(tmp_path)
    assert {p.dtype for p in blip.med.parameters()} == {torch.float32}
    CHECKS[kind](blip, theirs, pixels(len(texts), 32), texts, TOLERANCE)


@pytest.mark.parametrize("kind", ["filter", "captioner"])
def test_pytorch_model_bin(
    kind: str, folders: Any, reference: Any, pixels: Any, texts: list[str], tmp_path: Path
) -> None:
    """The pinned captioning-base commit has only this file, with the tied decoder weights and index buffers in it."""
    theirs = reference.open(folders(kind), kind)
    shutil.copytree(folders(kind), tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    half = "text_encoder" if kind == "filter" else "text_decoder.bert"
    extra = {f"{half}.embeddings.position_ids": torch.arange(64)[None]}
    torch.save(theirs.model.state_dict() | extra, tmp_path / "pytorch_model.bin")
    CHECKS[kind](Blip.load(tmp_path), theirs, pixels(len(texts), 32), texts, TOLERANCE)


@pytest.mark.parametrize("size", [16, 48, 64])
def test_other_image_size(size: int, folders: Any, reference: Any, pixels: Any, texts: list[str]) -> None:
    """Positions are interpolated as transformers does on the fly."""
    for kind, check in CHECKS.items():
        blip = Blip.load(folders(kind), image_size=size)
        assert blip.image_size == size == blip.processor.size
        theirs = reference.open(folders(kind), kind)
        check(blip, theirs, pixels(len(texts), size), texts, TOLERANCE, interpolate_pos_encoding=True)


def test_official_interpolation() -> None:
    """salesforce/BLIP, models/vit.py: bicubic, align_corners False, the class token kept."""
    position = torch.randn(1, 197, 8)
    square = position[:, 1:].reshape(-1, 14, 14, 8).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(24, 24), mode="bicubic", align_corners=False)
    official = torch.cat((position[:, :1], square.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
    assert torch.equal(checkpoint.interpolate_positions(position, 24), official)


def base_config() -> BlipConfig:
    """As the hub's base checkpoints: 12 text heads, vision eps left at 1e-5."""
    return BlipConfig(text_config={"num_attention_heads": 12}, vision_config={"initializer_range": 0.02})


@pytest.mark.parametrize("kind", ["filter", "captioner"])
def test_base_size(kind: str, reference: Any, folders: Any, tmp_path: Path, texts: list[str], pixels: Any) -> None:
    """The true base size with random weights, one 384 px image. (10 s a case on one core.)"""
    torch.manual_seed(0)
    model = CLASSES[kind](base_config()).eval()
    model.save_pretrained(tmp_path)
    med = checkpoint.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert med.config.with_halves(encoder=True, decoder=True) == base_med(dropout=0.0, eps=1e-5)
    state, back = model.state_dict(), checkpoint.hub_tensors(med)
    assert {name for name in state if "predictions.decoder." not in name} == back.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in back.items()), "what we would save"
    tiny = Blip.load(folders(kind))
    blip = Blip(med, replace(tiny.tokenizer, config=med.config.text), tiny.processor)
    theirs = reference(model, reference.open(folders(kind), kind).processor)
    CHECKS[kind](blip, theirs, pixels(1, 384), texts[1:2], 1e-5)


def base_med(dropout: float, eps: float) -> MEDConfig:
    """ViT-B/16 and BERT-base as the paper has them."""
    return MEDConfig(VisionConfig(eps=eps), TextConfig(dropout=dropout))
