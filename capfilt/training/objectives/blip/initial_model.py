"""Build the model that a recipe starts from: a checkpoint or a new model, with towers copied from other checkpoints."""

from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from capfilt.errors import CheckpointError, ConfigError
from capfilt.models.blip import checkpoint
from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.med import MED
from capfilt.models.blip.tokenizer import TextTokenizer, read_tokenizer, wordpiece
from capfilt.models.hub import resolve
from capfilt.training.objectives.blip.load_towers import other_half, take_projection, take_text, take_vision
from capfilt.training.objectives.blip.settings import BlipRecipe, ModelSection, ShapeSection


def initial_model(recipe: BlipRecipe) -> tuple[MED, TextTokenizer]:
    """Build MED with the halves that the recipe's losses need, and its tokenizer; the same in every process.

    Seeds torch's generators with `run.seed`.

    Raises:
        ConfigError, CheckpointError: the named weights are missing or do not fit.
    """
    torch.manual_seed(recipe.run.seed)
    halves = {"encoder": recipe.objective.contrastive, "decoder": bool(recipe.objective.lm)}
    start, size = recipe.model, recipe.augment.size
    med, tokenizer = _from_checkpoint(start, size, halves) if start.init else _from_shape(start, size, halves)
    if start.vision_init:
        take_vision(med.vision, resolve(start.vision_init), med.config.vision.grid)
        if halves["encoder"]:
            take_projection(med.vision_proj, resolve(start.vision_init))
    if start.text_init:
        take_text(med.text, resolve(start.text_init))
        if halves["encoder"]:
            take_projection(med.text_proj, resolve(start.text_init))
    tokenizer.max_tokens = recipe.data.max_tokens
    room = med.config.text.max_positions
    if recipe.data.max_tokens > room:
        raise ConfigError(f"data.max_tokens: {recipe.data.max_tokens} is more than the model's {room} positions")
    return med, tokenizer


def _from_checkpoint(start: ModelSection, size: int, halves: dict[str, bool]) -> tuple[MED, TextTokenizer]:
    folder = resolve(str(start.init), start.revision)
    if folder.is_file() and start.tokenizer is None:
        raise CheckpointError(f"{folder}: a file of weights has no tokenizer; name one under model.tokenizer")
    source = checkpoint.load(folder, image_size=size)
    vision = replace(source.config.vision, drop_path=start.drop_path or 0.0)
    text = replace(source.config.text, dropout=0.1 if start.dropout is None else start.dropout)
    med = MED(replace(source.config.with_halves(**halves), vision=vision, text=text))
    copy_halves(source, med)
    words = folder if start.tokenizer is None else resolve(start.tokenizer, weights=False)
    return med, read_tokenizer(words, med.config.text)


@torch.no_grad()
def copy_halves(source: MED, med: MED) -> None:
    """Copy weights by name. A half that `source` does not have gets the other half's self-attention and new heads."""
    have = source.state_dict()
    for name, tensor in med.state_dict().items():
        found = have.get(name, have.get(other_half(name)))
        if found is not None:
            tensor.copy_(found)


def _from_shape(start: ModelSection, size: int, halves: dict[str, bool]) -> tuple[MED, TextTokenizer]:
    shape = start.shape
    assert shape is not None  # checked by ModelSection
    folder = resolve(str(start.tokenizer or start.text_init), weights=False)
    text = _text_config(shape, folder)
    vision = VisionConfig(
        width=shape.vision_width,
        layers=shape.vision_layers,
        heads=shape.vision_heads,
        mlp_width=4 * shape.vision_width,
        image_size=size,
        patch_size=shape.patch_size,
        drop_path=shape.drop_path,
    )
    return MED(MEDConfig(vision, text, shape.embed_dim, **halves)), read_tokenizer(folder, text)


def _text_config(shape: ShapeSection, folder: Path) -> TextConfig:
    """Configure the text side for the folder's vocabulary, whose last two tokens are [DEC] and [ENC], or become them.

    Raises:
        CheckpointError: the folder has no vocabulary, or a token that MED needs is missing from it.
    """
    vocab = _vocabulary(folder)
    missing = [token for token in ("[PAD]", "[SEP]") if token not in vocab]
    if missing:
        raise CheckpointError(f"{folder}: no {', '.join(missing)} in this vocabulary")
    size, dec = len(vocab), vocab.get("[DEC]")
    if dec is not None and (dec != size - 2 or vocab.get("[ENC]") != size - 1):
        raise CheckpointError(f"{folder}: [DEC] and [ENC] must be the last two of the {size} tokens; [DEC] is {dec}")
    return TextConfig(
        vocab_size=size if dec is not None else size + 2,
        width=shape.text_width,
        layers=shape.text_layers,
        heads=shape.text_heads,
        mlp_width=shape.text_mlp,
        max_positions=shape.max_positions,
        dropout=shape.dropout,
        dec_id=dec if dec is not None else size,
        sep_id=vocab["[SEP]"],
        pad_id=vocab["[PAD]"],
    )


def _vocabulary(folder: Path) -> dict[str, int]:
    file, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if file.is_file():
            found: dict[str, int] = Tokenizer.from_file(str(file)).get_vocab()
            return found
        if vocab.is_file():
            found = wordpiece(vocab.read_text(encoding="utf-8").removesuffix("\n").split("\n")).get_vocab()
            return found
    except CheckpointError as error:
        raise CheckpointError(f"{vocab}: {error}") from error
    except Exception as error:  # tokenizers raises plain Exception on a damaged file
        raise CheckpointError(f"{folder}: not a tokenizer ({error})") from error
    raise CheckpointError(f"{folder}: neither tokenizer.json nor vocab.txt")
