"""Tensor names in three schemes (capfilt's, transformers', the official one), as tables of substitutions."""

import re
from collections.abc import Iterable, Sequence

# capfilt -> transformers; {half} is text_encoder or text_decoder.bert
_VISION = [
    (r"^vision\.class_token$", "vision_model.embeddings.class_embedding"),
    (r"^vision\.position$", "vision_model.embeddings.position_embedding"),
    (r"^vision\.patch\.", "vision_model.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision_model.post_layernorm."),
    (r"^vision\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^vision\.blocks\.(\d+)\.attention\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^vision\.blocks\.(\d+)\.attention\.out\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^vision\.blocks\.(\d+)\.up\.", r"vision_model.encoder.layers.\1.mlp.fc1."),
    (r"^vision\.blocks\.(\d+)\.down\.", r"vision_model.encoder.layers.\1.mlp.fc2."),
]
_ATTENTION = [("attention.query", "self.query"), ("attention.key", "self.key"), ("attention.value", "self.value")]
_ATTENTION += [("attention.out", "output.dense"), ("norm", "output.LayerNorm")]
_TEXT = [
    (r"^text\.word\.", "{half}.embeddings.word_embeddings."),
    (r"^text\.position\.", "{half}.embeddings.position_embeddings."),
    (r"^text\.norm\.", "{half}.embeddings.LayerNorm."),
    (r"^text\.layers\.(\d+)\.up\.", r"{half}.encoder.layer.\1.intermediate.dense."),
    (r"^text\.layers\.(\d+)\.down\.", r"{half}.encoder.layer.\1.output.dense."),
    (r"^text\.layers\.(\d+)\.norm\.", r"{half}.encoder.layer.\1.output.LayerNorm."),
    *(
        (rf"^text\.layers\.(\d+)\.{ours}\.{re.escape(a)}\.", rf"{half}.encoder.layer.\1.{theirs}.{b}.")
        for ours, theirs, half in (
            ("cross_attention", "crossattention", "{half}"),
            (r"self_attention\.encoder", "attention", "text_encoder"),
            (r"self_attention\.decoder", "attention", "text_decoder.bert"),
        )
        for a, b in _ATTENTION
    ),
]
_HEADS = [
    (r"^(vision_proj|text_proj|itm_head)\.", r"\1."),
    (r"^lm_head\.dense\.", "text_decoder.cls.predictions.transform.dense."),
    (r"^lm_head\.norm\.", "text_decoder.cls.predictions.transform.LayerNorm."),
    (r"^lm_head\.bias$", "text_decoder.cls.predictions.bias"),
]
_TO_HUB = [*_VISION, *_TEXT, *_HEADS]
_TIED = {
    "text.word.weight": "text_decoder.cls.predictions.decoder.weight",
    "lm_head.bias": "text_decoder.cls.predictions.decoder.bias",
}
# official (salesforce/BLIP) -> transformers, vision only: the text side and the heads have the same names
_OFFICIAL = [
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.fc([12])\.", r"vision_model.encoder.layers.\1.mlp.fc\2."),
]
_TRAINING_STATE = re.compile(
    r"^(visual_encoder|text_encoder|vision_proj|text_proj)_m\.|^temp$|^(image|text|idx)_queue$|^queue_ptr$|^ptr_queue$"
    r"|\.embeddings\.position_ids$"
)


def _rename(key: str, table: Iterable[tuple[str, str]], half: str = "") -> str | None:
    """Apply the first substitution that matches; None if none does."""
    for pattern, replacement in table:
        if re.match(pattern, key):
            return re.sub(pattern, replacement.replace("{half}", half), key)
    return None


def hub_names(key: str, halves: Sequence[str]) -> list[str]:
    """Return all names under which transformers may store a tensor of ours, the one to write first.

    Text tensors that both halves share may be stored under either. The LM head's weight and bias may be stored again as
    tied copies.

    Args:
        key: our name.
        halves: of "text_encoder" and "text_decoder.bert", those that the model has.
    """
    names = [_rename(key, _TO_HUB, half) for half in halves]
    tied = [_TIED[key]] if key in _TIED and "text_decoder.bert" in halves else []
    return list(dict.fromkeys([*(name for name in names if name), *tied]))


def from_official(name: str) -> str:
    """Return the transformers name of a tensor of an official `.pth`; other names are returned unchanged."""
    return _rename(name, _OFFICIAL) or name


def is_training_state(name: str) -> bool:
    """Return whether a tensor is training state: momentum copies, queues, the temperature and index buffers."""
    return bool(_TRAINING_STATE.search(name))
