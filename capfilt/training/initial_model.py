"""The model that a recipe starts from: a checkpoint, or a shape from scratch, with towers taken from elsewhere."""

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
from capfilt.training.load_towers import other_half, take_projection, take_text, take_vision
from capfilt.training.recipe import Recipe
from capfilt.training.recipe_sections import ModelPart, Shape


def initial_model(recipe: Recipe) -> tuple[MED, TextTokenizer]:
    """MED with the halves that the recipe's losses need, and its tokenizer; the same in every process.

    Raises:
        ConfigError, CheckpointError: the named weights are not there or do not fit.
    """
    torch.manual_seed(recipe.run.seed)
    halves = {"encoder": bool(recipe.objective.itc or recipe.objective.itm), "decoder": bool(recipe.objective.lm)}
    part, size = recipe.model, recipe.augment.size
    med, tokenizer = _from_checkpoint(part, size, halves) if part.init else _from_shape(part, size, halves)
    if part.vision_init:
        take_vision(med.vision, resolve(part.vision_init), med.config.vision.grid)
        if halves["encoder"]:
            take_projection(med.vision_proj, resolve(part.vision_init))
    if part.text_init:
        take_text(med.text, resolve(part.text_init))
        if halves["encoder"]:
            take_projection(med.text_proj, resolve(part.text_init))
    tokenizer.max_tokens = recipe.data.max_tokens
    room = med.config.text.max_positions
    if recipe.data.max_tokens > room:
        raise ConfigError(f"data.max_tokens: {recipe.data.max_tokens} is more than the model's {room} positions")
    return med, tokenizer


def _from_checkpoint(part: ModelPart, size: int, halves: dict[str, bool]) -> tuple[MED, TextTokenizer]:
    folder = resolve(str(part.init), part.revision)
    if folder.is_file() and part.tokenizer is None:
        raise CheckpointError(f"{folder}: a file of weights has no tokenizer; name one under model.tokenizer")
    source = checkpoint.load(folder, image_size=size)
    vision = replace(source.config.vision, drop_path=part.drop_path or 0.0)
    text = replace(source.config.text, dropout=0.1 if part.dropout is None else part.dropout)
    med = MED(replace(source.config.with_halves(**halves), vision=vision, text=text))
    copy_halves(source, med)
    words = folder if part.tokenizer is None else resolve(part.tokenizer, weights=False)
    return med, read_tokenizer(words, med.config.text)


@torch.no_grad()
def copy_halves(source: MED, med: MED) -> None:
    """Weights by name; a half that `source` lacks keeps its fresh heads and takes the other half's self-attention."""
    have = source.state_dict()
    for name, tensor in med.state_dict().items():
        found = have.get(name, have.get(other_half(name)))
        if found is not None:
            tensor.copy_(found)


def _from_shape(part: ModelPart, size: int, halves: dict[str, bool]) -> tuple[MED, TextTokenizer]:
    shape = part.shape
    assert shape is not None  # the recipe's own check
    folder = resolve(str(part.tokenizer or part.text_init), weights=False)
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


def _text_config(shape: Shape, folder: Path) -> TextConfig:
    """Token ids as the vocabulary has them: [DEC] and [ENC] are its last two tokens, or are appended to it.

    Raises:
        CheckpointError: no vocabulary there, or one without a token that MED needs.
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
