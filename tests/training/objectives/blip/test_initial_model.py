from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from capfilt.errors import CapfiltError, CheckpointError
from capfilt.models.blip import checkpoint
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.image import ImageProcessor
from capfilt.models.blip.med import MED
from capfilt.models.blip.names import hub_names
from capfilt.models.blip.tokenizer import TextTokenizer
from capfilt.training.objectives.blip.initial_model import initial_model
from capfilt.training.recipe import load_recipe

Recipes = Callable[..., Path]
Med = Callable[..., tuple[MED, TextTokenizer]]
ENCODER, DECODER = "self_attention.encoder", "self_attention.decoder"
FROM = {"shape": None, "tokenizer": None}


@pytest.fixture
def folder(tiny_med: Med, tmp_path: Path) -> Callable[..., Path]:
    """folder(encoder=True, decoder=True): a saved tiny MED."""

    def save(**halves: bool) -> Path:
        med, tokenizer = tiny_med(**halves)
        path = tmp_path / ("model" + "".join(half[0] for half, there in halves.items() if there))
        Blip(med, tokenizer, ImageProcessor(32)).save(path)
        return path

    return save


def start(path: Path, *settings: str) -> tuple[MED, dict[str, Tensor], TextTokenizer]:
    med, tokenizer = initial_model(load_recipe(path, list(settings)))
    return med, med.state_dict(), tokenizer


def test_from_shape_with_bert_like_and_own_vocabularies(tiny_recipe: Recipes, folder: Callable[..., Path]) -> None:
    path = tiny_recipe()
    med, state, tokenizer = start(path)
    text = med.config.text
    assert (text.vocab_size, text.dec_id, text.enc_id, text.sep_id, text.pad_id) == (25, 23, 24, 3, 0)
    assert (med.config.vision.grid, med.config.embed_dim, text.dropout, tokenizer.max_tokens) == (4, 16, 0.1, 20)
    assert all(torch.equal(tensor, state[name]) for name, tensor in start(path)[1].items())
    assert not torch.equal(start(path, "run.seed=1")[1]["text.word.weight"], state["text.word.weight"])
    words = folder()
    (words / "vocab.txt").unlink()
    (words / "tokenizer.json").write_text((words / "tokenizer.json").read_text())
    assert start(path, f"model.tokenizer={words}")[0].config.text == text


@pytest.mark.parametrize(("kind", "encoder", "decoder"), [("pretrain", 1, 1), ("captioner", 0, 1), ("filter", 1, 0)])
@pytest.mark.parametrize("source", ["both", "encoder", "decoder"])
def test_from_checkpoint_with_the_halves_that_the_losses_need(
    tiny_recipe: Recipes, folder: Callable[..., Path], kind: str, encoder: int, decoder: int, source: str
) -> None:
    given = folder(encoder=source != "decoder", decoder=source != "encoder")
    med, state, tokenizer = start(tiny_recipe(kind, model={**FROM, "init": str(given)}))
    have = checkpoint.load(given).state_dict()
    assert (med.config.encoder, med.config.decoder) == (bool(encoder), bool(decoder))
    assert ("lm_head.bias" in state, "itm_head.bias" in state) == (bool(decoder), bool(encoder))
    for name, tensor in state.items():
        other = name.replace(ENCODER, DECODER) if ENCODER in name else name.replace(DECODER, ENCODER)
        found = have.get(name, have.get(other))
        assert found is None or torch.equal(tensor, found)
        assert found is not None or name.split(".")[0] in ("lm_head", "itm_head", "vision_proj", "text_proj")
    assert med.config.text.dropout == 0.1
    assert tokenizer.ids(["a red disc"])[0][0] == 2


def test_another_image_size_and_other_rates(tiny_recipe: Recipes, folder: Callable[..., Path]) -> None:
    model = {**FROM, "init": str(folder()), "dropout": 0.25, "drop_path": 0.1}
    med, state, _ = start(tiny_recipe(model=model, augment={"size": 48}))
    assert state["vision.position"].shape == (1, 37, 32)
    assert (med.config.text.dropout, med.config.vision.drop_path, med.vision.blocks[1].drop_path.rate) == (
        0.25,
        0.1,
        0.1,
    )


def test_an_official_file_needs_a_tokenizer(tiny_recipe: Recipes, folder: Callable[..., Path], tmp_path: Path) -> None:
    given, file = folder(), tmp_path / "model.pth"
    torch.save({"model": load_file(given / "model.safetensors")}, file)
    path = tiny_recipe(model={**FROM, "init": str(file)})
    with pytest.raises(CheckpointError, match=r"name one under model\.tokenizer"):
        start(path)


def test_towers_from_blip_folders_and_warm_starts(
    tiny_recipe: Recipes, folder: Callable[..., Path], tmp_path: Path
) -> None:
    given = folder(encoder=True)
    have, path = checkpoint.load(given).state_dict(), tiny_recipe()
    fresh = start(path)[1]
    warm = tmp_path / "warm"
    warm.mkdir()
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}}
    for name, tensor in have.items():
        part, _, rest = name.partition(".")
        if part in parts and "decoder" not in rest and "cross_attention" not in rest:
            parts[part][rest] = tensor.clone()
    for part, tensors in parts.items():
        save_file(tensors, warm / f"{part}.safetensors")
    for source in (given, warm):
        vision = start(path, f"model.vision_init={source}")[1]
        text = start(path, f"model.text_init={source}")[1]
        assert all(torch.equal(vision[n], have[n] if n.startswith("vision.") else fresh[n]) for n in vision)
        for name, tensor in text.items():
            theirs = have[name.replace("decoder", "encoder")] if source == warm or "decoder" not in name else have[name]
            taken = name.startswith("text.") and (source == given or "cross_attention" not in name)
            assert torch.equal(tensor, theirs if taken else fresh[name]), name
    captioner = start(tiny_recipe("captioner", "c"), f"model.text_init={warm}")[1]
    name = f"text.layers.1.{DECODER}.attention.query.weight"
    assert torch.equal(captioner[name], have[name.replace(DECODER, ENCODER)])


def test_projections_come_with_their_warm_start(tiny_recipe: Recipes, tmp_path: Path) -> None:
    path = tiny_recipe()
    fresh = start(path)[1]
    for part in ("vision", "text"):
        (tmp_path / part).mkdir()
        tower = {n.removeprefix(f"{part}."): t for n, t in fresh.items() if n.startswith(f"{part}.")}
        save_file({name: tensor.clone() for name, tensor in tower.items()}, tmp_path / part / f"{part}.safetensors")
        save_file({"weight": torch.ones(16, 32), "bias": torch.zeros(16)}, tmp_path / part / "proj.safetensors")
    vision = start(path, f"model.vision_init={tmp_path / 'vision'}")[1]
    assert (vision["vision_proj.weight"] == 1).all()
    assert torch.equal(vision["text_proj.weight"], fresh["text_proj.weight"])
    text = start(path, f"model.text_init={tmp_path / 'text'}")[1]
    assert (text["text_proj.weight"] == 1).all()
    save_file({"weight": torch.ones(8, 32), "bias": torch.zeros(8)}, tmp_path / "text/proj.safetensors")
    with pytest.raises(CheckpointError, match=r"projection \w+ is \(8"):
        start(path, f"model.text_init={tmp_path / 'text'}")


def test_towers_from_a_plain_vit_and_a_bert(tiny_recipe: Recipes, tiny_med: Med, tmp_path: Path) -> None:
    have, path = tiny_med()[0].state_dict(), tiny_recipe()
    vit = {
        "cls_token": have["vision.class_token"],
        "pos_embed": have["vision.position"],
        "head.weight": torch.zeros(10, 32),
        **{f"patch_embed.proj.{p}": have[f"vision.patch.{p}"] for p in ("weight", "bias")},
        **{f"norm.{p}": have[f"vision.norm.{p}"] for p in ("weight", "bias")},
    }
    ours = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "attention.qkv", "attn.proj": "attention.out"}
    for theirs, mine in {**ours, "mlp.fc1": "up", "mlp.fc2": "down"}.items():
        for key in (f"{i}.%s.{p}" for i in (0, 1) for p in ("weight", "bias")):
            vit["blocks." + key % theirs] = have["vision.blocks." + key % mine]
    torch.save({"model": vit}, tmp_path / "deit.pth")
    state = start(path, f"model.vision_init={tmp_path / 'deit.pth'}")[1]
    assert all(torch.equal(state[name], have[name]) for name in state if name.startswith("vision."))

    bert = {"cls.predictions.bias": torch.zeros(23), "bert.pooler.dense.bias": torch.zeros(32)}
    for name in have:
        if name.startswith("text.") and "cross_attention" not in name and "decoder" not in name:
            hub = hub_names(name, ["text_encoder"])[0].replace("text_encoder.", "bert.")
            tensor = have[name][:-2] if name == "text.word.weight" else have[name]
            bert[hub.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = (
                tensor
            )
    (tmp_path / "bert").mkdir()
    save_file({k: v.contiguous() for k, v in bert.items()}, tmp_path / "bert/model.safetensors")
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    state = start(path, f"model.text_init={tmp_path / 'bert'}")[1]
    fresh = start(path)[1]
    for name in state:
        if name == "text.word.weight":
            assert torch.equal(state[name], torch.cat([have[name][:-2], fresh[name][-2:]]))
        elif name.startswith("text."):
            source = fresh if "cross_attention" in name else have
            assert torch.equal(state[name], source[name.replace("decoder", "encoder")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "model.shape.vision_width=48 model.vision_init=M",
            r"vision class_token is \(1, 1, 32\), the recipe's \(1, 1, 48\)",
        ),
        ("model.shape.vision_layers=3 model.vision_init=M", "no vision weights for this shape: 12 missing"),
        ("model.shape.vision_layers=1 model.vision_init=M", "12 left over: blocks.1"),
        ("model.shape.text_layers=3 model.text_init=M", "no text weights for this shape"),
        ("model.shape.text_layers=1 model.text_init=M", "left over: layers.1"),
        ("model.shape.text_mlp=32 model.text_init=M", "text layers.0.up.weight is"),
        ("model.vision_init=E", "no model.safetensors in this folder"),
        ("model.vision_init=tiny/nothing", "no such folder, file or shipped model"),
        ("model.tokenizer=E", "neither tokenizer.json nor vocab.txt"),
        ("model.tokenizer=W", r"vocab.txt: a WordPiece vocabulary without \[SEP\]"),
        ("model.tokenizer=D", r"\[DEC\] and \[ENC\] must be the last two of the 7 tokens; \[DEC\] is 5"),
        ("model.tokenizer=J", "J: not a tokenizer"),
        ("data.max_tokens=30", "data.max_tokens: 30 is more than the model's 24 positions"),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_recipe: Recipes, folder: Callable[..., Path], tmp_path: Path, settings: str, message: str
) -> None:
    for name, file, content in (
        ("E", "readme", ""),
        ("W", "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[MASK]\n"),
        ("D", "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n[DEC]\na\n"),
        ("J", "tokenizer.json", "{"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
    values: dict[str, Any] = {"M": folder(encoder=True, decoder=True)} | {n: tmp_path / n for n in "EWDJ"}
    given = [
        s.replace(f"={s[-1]}", f"={values[s[-1]]}") if s[-2:-1] == "=" and s[-1] in values else s
        for s in settings.split()
    ]
    with pytest.raises(CapfiltError, match=message):
        start(tiny_recipe(), *given)
