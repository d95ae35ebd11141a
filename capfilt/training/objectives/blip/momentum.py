"""Momentum encoders and key queue of ITC (paper section 3.2, after MoCo and ALBEF)."""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.errors import ConfigError
from capfilt.models.blip.med import MED
from capfilt.models.torch_compat import lerp_all_


class Momentum(nn.Module):
    """Moving-average copies of the vision tower, the text encoder and both projections, and the queue of their outputs.

    Every rank holds the same copies and the same queue, because all follow the same weights and the queue gets the keys
    of all ranks. As in the official code the copies stay in training mode, with dropout. Only the first `filled` keys
    of the queue are used; the official queue starts full of random directions, which belong to no image and no text.
    """

    image_queue: Tensor
    text_queue: Tensor
    id_queue: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, med: MED, rate: float, size: int) -> None:
        super().__init__()
        self.rate = rate
        self.med = copy.deepcopy(med)
        self.med.set_checkpointing(False)
        for name in ("lm_head", "itm_head"):
            if hasattr(self.med, name):
                delattr(self.med, name)
        for layer in self.med.text.layers:
            del layer.cross_attention
            if med.config.decoder:
                del layer.self_attention["decoder"]  # type: ignore[operator, union-attr]
        self.med.requires_grad_(False)
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, torch.zeros(size, med.config.embed_dim))
        self.register_buffer("id_queue", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, med: MED) -> None:
        """Move the copies towards `med`: p_m <- m * p_m + (1 - m) * p."""
        live = dict(med.named_parameters())
        mine = [(p, live[name]) for name, p in self.med.named_parameters()]
        lerp_all_([a for a, _ in mine], [b.detach() for _, b in mine], 1.0 - self.rate)

    def keys(self, image: Tensor, text: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of images and of texts, and their image ids: (B + filled, E), (B + filled, E), (B + filled,).

        This rank's batch comes first, then the queue.
        """
        kept = int(self.filled)
        batch, queue = (image, text, ids), (self.image_queue, self.text_queue, self.id_queue)
        images, texts, all_ids = (torch.cat([new, old[:kept]]) for new, old in zip(batch, queue, strict=True))
        return images, texts, all_ids

    @torch.no_grad()
    def enqueue(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """Replace the oldest keys by every rank's batch.

        Args:
            image, text: (B, E) keys of this rank.
            ids: (B,) image ids.

        Raises:
            ConfigError: the queue's size is not a multiple of the pairs of one forward pass on all ranks.
        """
        size = len(self.id_queue)
        if size == 0:
            return
        image, text, ids = (gather(x) for x in (image, text, ids))
        if size % len(ids):
            raise ConfigError(
                f"objective.queue_size: {size} is not a multiple of the global batch {len(ids)}; "
                f"take {max(1, size // len(ids)) * len(ids)}"
            )
        at = int(self.pointer)
        for queue, keys in ((self.image_queue, image), (self.text_queue, text), (self.id_queue, ids)):
            queue[at : at + len(ids)] = keys
        self.pointer.fill_((at + len(ids)) % size)
        self.filled.fill_(min(size, int(self.filled) + len(ids)))


def features(med: MED, image_states: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """ITC embeddings of images and of texts: each (B, E), L2-normalised, float32 also under autocast.

    bf16 has 8 significant bits: its rounding of a cosine, divided by tau = 0.07, would be 0.06 in every logit.
    """
    text_states = med.text.run("encoder", tokens, mask, None)
    with torch.autocast(tokens.device.type, enabled=False):
        image = med.image_features(image_states[:, :1].float())
        return image, F.normalize(med.text_proj(text_states[:, 0].float()), dim=-1)


def gather(x: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in rank order, without gradient; x itself in one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
