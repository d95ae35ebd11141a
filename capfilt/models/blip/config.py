"""Configuration of a MED: given, read from and written to a transformers `config.json`, or inferred from tensors."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from capfilt.errors import CheckpointError, ConfigError


def _require_multiple(whole: int, divisor: int, description: str) -> None:
    if divisor < 1 or whole < divisor or whole % divisor:
        raise ConfigError(f"{description}: {whole} is not a multiple of {divisor}")


@dataclass(frozen=True)
class VisionConfig:
    """Vision tower (paper section 3.1; ViT-B/16 by default). Sizes in pixels, widths in channels."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    image_size: int = 384
    patch_size: int = 16
    eps: float = 1e-6
    """The official value. Hub configs leave it out, and transformers then takes 1e-5."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last layer, linear over layers; training only (0.1 for ViT-L)."""

    def __post_init__(self) -> None:
        _require_multiple(self.width, self.heads, "vision width and heads")
        _require_multiple(self.image_size, self.patch_size, "image size and patch size in pixels")

    @property
    def grid(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """Text transformer: BERT-base with cross-attention. [ENC] is the id after [DEC], as in every BLIP vocabulary."""

    vocab_size: int = 30524
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    eps: float = 1e-12
    dropout: float = 0.1
    dec_id: int = 30522
    sep_id: int = 102
    pad_id: int = 0

    def __post_init__(self) -> None:
        _require_multiple(self.width, self.heads, "text width and heads")

    @property
    def enc_id(self) -> int:
        """Id of [ENC], the token at position 0 for ITM."""
        return self.dec_id + 1


@dataclass(frozen=True)
class MEDConfig:
    """Both towers, the width of the common ITC space, and which halves the text side has."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_dim: int = 256
    encoder: bool = True
    """Has the text encoder, both projections and the ITM head (a filter, or a pre-trained model)."""
    decoder: bool = True
    """Has the decoder's self-attention and the LM head (a captioner, or a pre-trained model)."""

    def with_halves(self, *, encoder: bool, decoder: bool) -> "MEDConfig":
        """Return the same shape with these halves."""
        return replace(self, encoder=encoder, decoder=decoder)


ARCHITECTURES = {
    (False, True): "BlipForConditionalGeneration",
    (True, False): "BlipForImageTextRetrieval",
    (True, True): "BlipForImageTextRetrieval",  # a pre-trained MED: transformers opens its encoder half
}

_VISION_KEYS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "eps": "layer_norm_eps",
}
_TEXT_KEYS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "dec_id": "bos_token_id",
    "sep_id": "sep_token_id",
    "pad_id": "pad_token_id",
}
# Defaults of transformers for keys that a config.json leaves out (configuration_blip.py of 5.x).
_VISION_DEFAULTS = {"layer_norm_eps": 1e-5}
_TEXT_DEFAULTS = {"num_attention_heads": 8, "hidden_dropout_prob": 0.0}


def from_transformers(config: dict[str, Any], where: str, *, encoder: bool, decoder: bool) -> MEDConfig:
    """Read a transformers BLIP `config.json`.

    Args:
        config: the parsed file.
        where: its path, for errors.
        encoder: the checkpoint has the encoder half.
        decoder: the checkpoint has the decoder half.

    Raises:
        CheckpointError: another model type, an activation that MED does not have, or sizes that contradict each other.
    """
    if config.get("model_type") != "blip":
        raise CheckpointError(f"{where}: model_type is {config.get('model_type')!r}; a BLIP checkpoint has 'blip'")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    for name, part in (("vision_config", vision), ("text_config", text)):
        if part.get("hidden_act", "gelu") != "gelu":
            raise CheckpointError(f"{where}: {name}.hidden_act is {part['hidden_act']!r}; MED has erf 'gelu' only")
    try:
        return MEDConfig(
            vision=VisionConfig(**_pick(_VISION_DEFAULTS | vision, _VISION_KEYS)),
            text=TextConfig(**_pick(_TEXT_DEFAULTS | text, _TEXT_KEYS)),
            embed_dim=config.get("image_text_hidden_size", 256),
            encoder=encoder,
            decoder=decoder,
        )
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{where}: not the shape of a BLIP ({error})") from error


def _pick(source: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    return {ours: source[theirs] for ours, theirs in keys.items() if source.get(theirs) is not None}


def infer(tensors: Mapping[str, Tensor], where: str, *, encoder: bool, decoder: bool) -> MEDConfig:
    """Infer the shape of weights without a config (an official `.pth`) from their tensors, under transformers' names.

    What tensors cannot show is taken as in every official model: heads = width // 64, LayerNorm eps 1e-6 (vision) and
    1e-12 (text), [DEC] and [ENC] the last two tokens, [SEP] 102 and [PAD] 0 (BERT's vocabulary).

    Raises:
        CheckpointError: a tensor that shows a size is missing, or sizes contradict each other.
    """
    half = "text_encoder" if encoder else "text_decoder.bert"
    try:
        return MEDConfig(
            _infer_vision(tensors),
            _infer_text(tensors, half),
            tensors["vision_proj.weight"].shape[0] if encoder else 256,
            encoder,
            decoder,
        )
    except KeyError as error:
        raise CheckpointError(f"{where}: not a BLIP: no {error.args[0]} among its {len(tensors)} tensors") from error
    except (ValueError, IndexError, ConfigError) as error:
        raise CheckpointError(f"{where}: not the shape of a BLIP ({error})") from error


def _infer_vision(tensors: Mapping[str, Tensor]) -> VisionConfig:
    root = "vision_model"
    width, _, patch, _ = tensors[f"{root}.embeddings.patch_embedding.weight"].shape
    positions = tensors[f"{root}.embeddings.position_embedding"].shape[1]
    return VisionConfig(
        width=width,
        layers=_count(tensors, rf"{root}\.encoder\.layers\.(\d+)\."),
        heads=width // 64,
        mlp_width=tensors[f"{root}.encoder.layers.0.mlp.fc1.weight"].shape[0],
        image_size=math.isqrt(positions - 1) * patch,
        patch_size=patch,
    )


def _infer_text(tensors: Mapping[str, Tensor], half: str) -> TextConfig:
    vocab, width = tensors[f"{half}.embeddings.word_embeddings.weight"].shape
    return TextConfig(
        vocab_size=vocab,
        width=width,
        layers=_count(tensors, rf"{re.escape(half)}\.encoder\.layer\.(\d+)\."),
        heads=width // 64,
        mlp_width=tensors[f"{half}.encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_positions=tensors[f"{half}.embeddings.position_embeddings.weight"].shape[0],
        dec_id=vocab - 2,
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return the number of layers, from the largest layer number in the names."""
    return 1 + max(int(found[1]) for name in tensors if (found := re.match(pattern, name)))


def to_transformers(config: MEDConfig) -> dict[str, Any]:
    """Return the `config.json` with which transformers computes the same numbers."""
    vision, text = asdict(config.vision), asdict(config.text)
    return {
        "architectures": [ARCHITECTURES[config.encoder, config.decoder]],
        "model_type": "blip",
        "dtype": "float32",  # weights may be stored as fp16; transformers computes in fp32 by default
        "image_text_hidden_size": config.embed_dim,
        "projection_dim": config.embed_dim,
        "initializer_range": 0.02,
        "vision_config": {
            "model_type": "blip_vision_model",
            "hidden_act": "gelu",
            "initializer_range": 0.02,
            **{theirs: vision[ours] for ours, theirs in _VISION_KEYS.items()},
        },
        "text_config": {
            "model_type": "blip_text_model",
            "hidden_act": "gelu",
            "encoder_hidden_size": config.vision.width,
            "attention_probs_dropout_prob": config.text.dropout,
            "initializer_range": 0.02,
            "is_decoder": True,
            "eos_token_id": config.text.sep_id,
            "label_smoothing": 0.1,
            **{theirs: text[ours] for ours, theirs in _TEXT_KEYS.items()},
        },
    }
