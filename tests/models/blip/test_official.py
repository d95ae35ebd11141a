"""The official `.pth` layout: names, training state beside the model, shapes read off the tensors, hostile pickles."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from capfilt.errors import CheckpointError, ConfigError
from capfilt.models.blip import checkpoint
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.med import MED

VISION = VisionConfig(width=128, layers=2, heads=2, mlp_width=96, image_size=32, patch_size=8)
"""Heads of 64 channels and eps 1e-6, as every official model: both are not in the tensors."""

# transformers -> official, written down here apart from the code under test
RENAMES = [
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.post_layernorm", "visual_encoder.norm"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.qkv.", ".attn.qkv."),
]


def make_med(vocab: list[str], *, encoder: bool = True, decoder: bool = True) -> MED:
    torch.manual_seed(5)
    text = TextConfig(len(vocab) + 2, 64, 2, 1, 80, 48, dec_id=len(vocab))
    med = MED(MEDConfig(VISION, text, 24, encoder=encoder, decoder=decoder))
    for parameter in med.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return med.eval()


def official_state(med: MED) -> dict[str, Tensor]:
    """As BLIP_Pretrain saves it: shared tensors in both halves, tied head, momentum copies, queues, temperature."""
    state = checkpoint.hub_tensors(med)
    if med.config.encoder and med.config.decoder:
        for name in [n for n in state if re.match(r"text_encoder\.(?!.*\.attention\.)", n)]:
            state[name.replace("text_encoder.", "text_decoder.bert.")] = state[name]
    if med.config.decoder:
        state["text_decoder.cls.predictions.decoder.weight"] = med.text.word.weight.detach()
        state["text_decoder.cls.predictions.decoder.bias"] = med.lm_head.bias.detach()
    for old, new in RENAMES:
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    momentum = ("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.")
    if med.config.encoder:
        state |= {n.replace(".", "_m.", 1): torch.zeros_like(t) for n, t in state.items() if n.startswith(momentum)}
        state |= {"image_queue": torch.zeros(24, 8), "text_queue": torch.zeros(24, 8), "temp": torch.tensor(0.07)}
        state |= {"queue_ptr": torch.zeros(1), "idx_queue": torch.zeros(1, 8), "ptr_queue": torch.zeros(1)}
        state |= {"text_encoder.embeddings.position_ids": torch.arange(48)[None]}
    return state


def equal(a: MED, b: MED) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("encoder", "decoder"), [(True, True), (True, False), (False, True)])
def test_official_weights(encoder: bool, decoder: bool, vocab: list[str], tmp_path: Path) -> None:
    """With a stated shape, and with the shape read off the tensors."""
    med = make_med(vocab, encoder=encoder, decoder=decoder)
    path = tmp_path / "model_base.pth"
    torch.save({"model": official_state(med), "epoch": 4, "config": {"image_size": 224}}, path)
    assert equal(checkpoint.build(med.config, checkpoint.load_tensors(path), str(path), None), med)
    read = checkpoint.load(path)
    assert equal(read, med)
    assert read.config.vision == VISION
    assert read.config.text == med.config.text
    assert (read.config.encoder, read.config.decoder) == (encoder, decoder)


def test_load_official_interpolates(vocab: list[str], tmp_path: Path) -> None:
    """A 224 px pre-trained file for 384 px fine-tuning, in small."""
    med = make_med(vocab)
    torch.save({"model": official_state(med)}, tmp_path / "m.pth")
    read = checkpoint.load(tmp_path / "m.pth", image_size=48)
    assert read.config.vision.image_size == 48
    assert torch.equal(read.vision.position, checkpoint.interpolate_positions(med.vision.position, 6))


def test_blip_from_file(vocab: list[str], folders: Any, pixels: Any, texts: list[str], tmp_path: Path) -> None:
    med = make_med(vocab)
    torch.save({"model": official_state(med)}, tmp_path / "m.pth")
    blip = Blip.load(tmp_path / "m.pth", tokenizer=folders("filter"))
    assert blip.roles == {"captioner", "judge", "embedder"}
    expected = Blip(med, blip.tokenizer, blip.processor)
    assert blip.score(pixels(1, 32), [texts]) == expected.score(pixels(1, 32), [texts])
    with pytest.raises(ConfigError, match=r"no tokenizer.*vocab\.txt"):
        Blip.load(tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Blip.load(tmp_path / "m.pth", tokenizer=tmp_path)


def test_copies_that_disagree(vocab: list[str], tmp_path: Path) -> None:
    """Halves that were trained apart (the official VQA model) are no MED, nor is an untied LM head."""
    state = official_state(make_med(vocab))
    for name in (
        "text_decoder.bert.encoder.layer.0.output.dense.weight",
        "text_decoder.cls.predictions.decoder.weight",
    ):
        torch.save({"model": state | {name: state[name] + 1}}, tmp_path / "m.pth")
        with pytest.raises(CheckpointError, match=rf"1 unlike their copy: {re.escape(name)}"):
            checkpoint.load(tmp_path / "m.pth")


class Hostile:
    """Unpickling it would make a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old_format", [False, True])
def test_hostile_pickle_is_refused(old_format: bool, tmp_path: Path) -> None:
    path, proof = tmp_path / "m.pth", tmp_path / "executed"
    torch.save({"model": {"temp": Hostile(proof)}}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CheckpointError, match=r"refused: it asks for posix\.mkdir") as caught:
        checkpoint.load(path)
    assert not proof.exists()
    assert "weights_only" not in str(caught.value)


def test_files_that_are_no_checkpoint(vocab: list[str], tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save({"model": official_state(make_med(vocab))}, good)
    half = tmp_path / "half.pth"
    half.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text = tmp_path / "text.pth"
    text.write_text("<html>404</html>")
    listed = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], listed)
    nested = tmp_path / "nested.pth"
    torch.save({"state": {"a": torch.zeros(1)}}, nested)
    other = tmp_path / "other.pth"
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, other)
    for path, told in [(half, "damaged"), (text, "refused|damaged"), (listed, "table"), (nested, "table"),
                       (other, "not a BLIP: no vision_model.embeddings.patch_embedding.weight")]:  # fmt: skip
        with pytest.raises(CheckpointError, match=rf"{path.name}: .*({told})"):
            checkpoint.load(path)
