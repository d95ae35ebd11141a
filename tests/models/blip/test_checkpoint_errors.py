"""What a user sees when the weights are not a BLIP, or not whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from capfilt.errors import CheckpointError, ConfigError
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig, from_transformers, to_transformers


@pytest.fixture
def folder(folders: Any, tmp_path: Path) -> Path:
    """A copy of a good filter's folder, to be broken."""
    return Path(shutil.copytree(folders("filter"), tmp_path / "model"))


def edit(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in keys.items():
        part, _, name = key.partition("__")
        (config[part] if name else config)[name or part] = value
    (folder / "config.json").write_text(json.dumps(config))


def fails(folder: Path, told: str) -> str:
    with pytest.raises(CheckpointError, match=told) as caught:
        Blip.load(folder)
    return str(caught.value)


def test_clip_and_bert(tmp_path: Path) -> None:
    """Another architecture: its type, and which tensors are missing and left over."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clip = CLIPConfig(
        text_config=small | {"vocab_size": 99}, vision_config=small | {"image_size": 32, "patch_size": 16}
    )
    CLIPModel(clip).save_pretrained(tmp_path / "clip")
    BertModel(BertConfig(**small, vocab_size=99)).save_pretrained(tmp_path / "bert")
    told = fails(tmp_path / "clip", "model_type is 'clip'")
    assert "missing: itm_head.bias" in told
    assert "left over: logit_scale" in told
    told = fails(tmp_path / "bert", "model_type is 'bert'")
    assert "left over: embeddings.LayerNorm" in told
    edit(tmp_path / "bert", model_type="blip")
    assert "left over: embeddings.LayerNorm" in fails(tmp_path / "bert", "neither text_encoder.* nor text_decoder")


def test_config_json(folder: Path) -> None:
    path = folder / "config.json"
    text = path.read_text()
    path.write_text("[1, 2]")
    fails(folder, r"config\.json: holds a JSON list")
    path.write_text("{nope")
    fails(folder, r"config\.json: cannot be read")
    path.unlink()
    fails(folder, r"config\.json: cannot be read .*No such file")
    path.write_text(text)
    Blip.load(folder)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"vision_config__hidden_act": "quick_gelu"}, "vision_config.hidden_act is 'quick_gelu'"),
        ({"text_config__num_attention_heads": 5}, "text width and heads: 32 is not a multiple of 5"),
        ({"vision_config__image_size": 33}, "33 is not a multiple of 8"),
        ({"vision_config__image_size": [32, 64]}, "not the shape of a BLIP"),
        ({"text_config__num_hidden_layers": 3}, r"\d+ missing: text_encoder.encoder.layer.2"),
        ({"text_config__num_hidden_layers": 1}, r"\d+ left over: text_encoder.encoder.layer.1"),
        ({"text_config__vocab_size": 77}, r"word_embeddings.weight is \(\d+, 32\), not \(77, 32\)"),
        ({"vision_config": None}, "missing"),
        ({"text_config__sep_token_id": 3}, r"\[SEP\] is 102 there and 3 here"),
    ],
)
def test_config_that_does_not_fit(keys: dict[str, Any], told: str, folder: Path) -> None:
    edit(folder, **keys)
    fails(folder, told)


def test_damaged_safetensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 64):
        path.write_bytes(part)
        fails(folder, r"model\.safetensors: damaged")
    path.unlink()
    fails(folder, r"no model\.safetensors in this folder")


def test_missing_tensor_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["itm_head.weird"] = tensors.pop("itm_head.weight")
    save_file(tensors, path)
    fails(folder, "1 missing: itm_head.weight; 1 left over: itm_head.weird")


def test_shards(folder: Path) -> None:
    """Several safetensors, as large models are stored; a lost one is seen, and a whole file goes before leftovers."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    expected = Blip.load(folder).med.state_dict()
    names = sorted(tensors)
    for i, part in enumerate((names[:50], names[50:]), 1):
        save_file({name: tensors[name] for name in part}, folder / f"model-0000{i}-of-00002.safetensors")
    path.rename(folder / "whole")
    state = Blip.load(folder).med.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"")
    fails(folder, "damaged")
    (folder / "whole").rename(path)
    Blip.load(folder)
    path.rename(folder / "whole")
    (folder / "model-00002-of-00002.safetensors").unlink()
    fails(folder, "missing")


def test_image_size_that_patches_do_not_fill(folder: Path) -> None:
    with pytest.raises(ConfigError, match="36 is not a multiple of 8"):
        Blip.load(folder, image_size=36)


def test_kill_during_save_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are written beside their place and renamed."""
    blip = Blip.load(folder)
    before = (folder / "model.safetensors").read_bytes()

    def killed(tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("capfilt.models.blip.checkpoint.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        blip.save(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    Blip.load(folder)


def test_silent_config_is_read_as_transformers_reads_it() -> None:
    """The hub's configs leave out values: vision eps is then 1e-5, text heads 8, dropout 0."""
    config = from_transformers({"model_type": "blip", "text_config": None}, "here", encoder=True, decoder=False)
    assert config.vision == VisionConfig(eps=1e-5)
    assert config.text == TextConfig(heads=8, dropout=0.0)


def test_config_round_trip() -> None:
    vision = VisionConfig(1024, 24, 16, 4096, 224, 14, 1e-6)
    config = MEDConfig(vision, TextConfig(4002, 192, 4, 3, 768, 64, 1e-12, 0.2, 4000, 3, 1), 192)
    assert from_transformers(to_transformers(config), "here", encoder=True, decoder=True) == config
