"""MED, the multimodal mixture of encoder-decoder (paper section 3.1): two towers, two projections, two heads.

Call the vision tower once per image and pass its output to `image_features` (ITC) and `cross_kv`, whose keys and values
`itm_logits` and `lm_logits` take.

Shape legend: B images, T texts, L tokens per text, P patches, D width, E common ITC width, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.models.blip.config import MEDConfig
from capfilt.models.blip.layers import KV, init_weights
from capfilt.models.blip.packed import Linear
from capfilt.models.blip.text import LMHead, TextTransformer
from capfilt.models.blip.vision import VisionTower


class MED(nn.Module):
    """Vision tower `vision`, text transformer `text`, and the heads of the halves that `config` names."""

    def __init__(self, config: MEDConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.text = TextTransformer(config)
        if config.encoder:
            self.vision_proj = Linear(config.vision.width, config.embed_dim)
            self.text_proj = Linear(config.text.width, config.embed_dim)
            self.itm_head = Linear(config.text.width, 2)
            for head in (self.vision_proj, self.text_proj, self.itm_head):
                init_weights(head)
        if config.decoder:
            self.lm_head = LMHead(config.text)

    def set_checkpointing(self, on: bool) -> None:
        """Turn activation checkpointing of both towers on or off: a third slower, a fraction of the memory.

        It has an effect in training only.
        """
        self.vision.checkpointing = self.text.checkpointing = on

    def image_features(self, image_states: Tensor) -> Tensor:
        """Return the image side of ITC: states (B, P + 1, D) -> (B, E), L2-normalised."""
        return F.normalize(self.vision_proj(image_states[:, 0]), dim=-1)

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the text side of ITC: ids (T, L) int64 from [CLS] on, mask (T, L) bool -> (T, E), L2-normalised."""
        return self.text_head(self.text.run("encoder", ids, mask, None)[:, 0])

    def text_head(self, states: Tensor) -> Tensor:
        """Project the states of first tokens, (T, D) -> (T, E), L2-normalised."""
        return F.normalize(self.text_proj(states), dim=-1)

    def cross_kv(self, image_states: Tensor) -> list[KV]:
        """Compute each text layer's cross-attention keys and values of image states (B, P + 1, D)."""
        return self.text.cross_kv(image_states)

    def itm_logits(self, ids: Tensor, mask: Tensor, image_kv: list[KV]) -> Tensor:
        """Judge image-text pairs (ITM).

        Args:
            ids: (T, L) int64, whose token 0 is replaced by [ENC].
            mask: (T, L) bool, True = token, False = padding.
            image_kv: keys and values of T images, one per text.

        Returns:
            Logits (T, 2): [no match, match].
        """
        ids = ids.clone()
        ids[:, 0] = self.config.text.enc_id
        logits: Tensor = self.itm_head(self.text.run("encoder", ids, mask, image_kv)[:, 0])
        return logits

    def lm_logits(self, ids: Tensor, image_kv: list[KV]) -> Tensor:
        """Predict the token after each position (LM).

        Args:
            ids: (T, L) int64, whose token 0 is replaced by [DEC].
            image_kv: keys and values of T images, one per text.

        Returns:
            Logits (T, L, V).
        """
        ids = ids.clone()
        ids[:, 0] = self.config.text.dec_id
        logits: Tensor = self.lm_head(self.text.run("decoder", ids, None, image_kv), self.text.word.weight)
        return logits


def select_kv(image_kv: list[KV], index: Tensor) -> list[KV]:
    """Take keys and values of the images `index` (T,) int64, one row per text."""
    return [(k[index], v[index]) for k, v in image_kv]
