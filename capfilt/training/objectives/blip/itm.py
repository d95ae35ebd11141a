"""Image-text matching: hard negatives, soft targets and the loss (paper section 3.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.models.blip.layers import KV
from capfilt.models.blip.med import MED, select_kv
from capfilt.training.objectives.blip.settings import BlipSettings


def hard_negatives(similarity: Tensor, ids: Tensor, floor: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Draw one negative per row from softmax(similarity) + floor, among the columns with another image id.

    Args:
        similarity: (B, B) already divided by tau.
        ids: (B,) image ids of rows and columns.
        floor: > 0, so that a confident model still draws easy negatives.

    Returns:
        (B,) int64 column per row, and (B,) bool: False where every column has the row's own id.
    """
    weights = similarity.float().softmax(-1).nan_to_num(0.0) + floor  # the loop itself reports NaN
    weights = weights.masked_fill(ids[:, None] == ids[None, :], 0.0)
    there = weights.sum(-1) > 0
    return torch.multinomial(weights + (~there)[:, None], 1).squeeze(-1), there


def match_probability(i2t: Tensor, t2i: Tensor) -> Tensor:
    """Estimate P(match) of every pair from the ITC similarities, as a soft target for ITM.

    InfoNCE's optimum is the log density ratio of a pair up to a constant of its row, the log mean exp over the keys
    (van den Oord et al. 2018); ITM's prior of 1 : 2 makes it a probability. With few training pairs ITC learns to
    generalise sooner than ITM, which sees three pairs per image where ITC sees a whole queue.

    Args:
        i2t, t2i: (B, B + queue) similarities / tau, the batch's own keys first.

    Returns:
        (B, B) in [0, 1]: rows are images, columns are texts.
    """
    n = len(i2t)
    ratio = [s[:, :n] - s.logsumexp(-1, keepdim=True) + math.log(s.shape[1]) for s in (i2t, t2i)]
    return ((ratio[0] + ratio[1].T) / 2 - math.log(2)).sigmoid()


def itm_loss(
    med: MED,
    texts: tuple[Tensor, Tensor],
    kv: list[KV],
    similarities: tuple[Tensor, Tensor],
    ids: Tensor,
    settings: BlipSettings,
    ramp: float,
) -> Tensor:
    """Cross-entropy over 3B pairs: (image, its text), (a hard image, the text), (the image, a hard text).

    Args:
        med: with its encoder half.
        texts: token ids and mask, both (B, L).
        kv: cross-attention keys and values of the B images.
        similarities: image to text and text to image, both (B, B + queue) / tau, the batch's own keys first.
        ids: (B,) image ids.
        settings: `hard_floor` and `itm_alpha` are used.
        ramp: factor of `itm_alpha`, in [0, 1].
    """
    n = len(ids)
    (tokens, mask), (i2t, t2i) = texts, similarities
    own = torch.arange(n, device=ids.device)
    image_of, image_there = hard_negatives(t2i[:, :n], ids, settings.hard_floor)
    text_of, text_there = hard_negatives(i2t[:, :n], ids, settings.hard_floor)
    images = torch.cat([own, image_of[image_there], own[text_there]])
    rows = torch.cat([own, own[image_there], text_of[text_there]])
    logits = med.itm_logits(tokens[rows], mask[rows], select_kv(kv, images))
    match = torch.zeros(len(images), device=ids.device)
    match[:n] = 1.0
    alpha = settings.itm_alpha * ramp
    if alpha:
        match = torch.lerp(match, match_probability(i2t, t2i)[images, rows], alpha)
    return F.cross_entropy(logits.float(), torch.stack([1 - match, match], dim=-1))
