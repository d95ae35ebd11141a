"""MED, the multimodal mixture of encoder-decoder (paper section 3.1): two towers, two projections, two heads.

The vision tower is called once an image and its output is handed to `image_features` (ITC), `itm_logits` and
`lm_logits`; cross-attention keys and values are made once an image by `cross_kv`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.models.blip.config import MEDConfig
from capfilt.models.blip.layers import KV, init_weights
from capfilt.models.blip.packed import Linear
from capfilt.models.blip.text import LMHead, TextTransformer
from capfilt.models.blip.vision import VisionTower


class MED(nn.Module):
    """B images, T texts, L tokens a text, P patches, E the common ITC width."""

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
        """Activation checkpointing of both towers, in training only: a third less speed, a fraction of the memory."""
        self.vision.checkpointing = self.text.checkpointing = on

    def image_features(self, image_states: Tensor) -> Tensor:
        """(B, P + 1, D) -> (B, E), L2-normalised: the image side of ITC."""
        return F.normalize(self.vision_proj(image_states[:, 0]), dim=-1)

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (T, L) with [CLS] first, mask (T, L) bool -> (T, E), L2-normalised: the text side of ITC."""
        return self.text_head(self.text.run("encoder", ids, mask, None)[:, 0])

    def text_head(self, states: Tensor) -> Tensor:
        """First tokens' states (T, D) -> (T, E), L2-normalised."""
        return F.normalize(self.text_proj(states), dim=-1)

    def cross_kv(self, image_states: Tensor) -> list[KV]:
        """(B, P + 1, D) -> each text layer's cross-attention keys and values of those images."""
        return self.text.cross_kv(image_states)

    def itm_logits(self, ids: Tensor, mask: Tensor, image_kv: list[KV]) -> Tensor:
        """ids (T, L), whose token 0 is replaced by [ENC]; image_kv of T images -> (T, 2): [no match, match]."""
        ids = ids.clone()
        ids[:, 0] = self.config.text.enc_id
        logits: Tensor = self.itm_head(self.text.run("encoder", ids, mask, image_kv)[:, 0])
        return logits

    def lm_logits(self, ids: Tensor, image_kv: list[KV]) -> Tensor:
        """ids (T, L), whose token 0 is replaced by [DEC] -> (T, L, V): logits of the token after each position."""
        ids = ids.clone()
        ids[:, 0] = self.config.text.dec_id
        logits: Tensor = self.lm_head(self.text.run("decoder", ids, None, image_kv), self.text.word.weight)
        return logits


def select_kv(image_kv: list[KV], index: Tensor) -> list[KV]:
    """Keys and values of images `index` (T,) int64, one row a text."""
    return [(k[index], v[index]) for k, v in image_kv]
