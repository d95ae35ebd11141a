"""Beam search with the same tokens as transformers 5.x (`generation/utils.py`, `_beam_search`, early_stopping=False).

Each image has N running beams and N finished captions. A step extends the running beams by the 2N best (beam, token)
candidates of all N * V, by summed log-probability after the rules. Candidates that end are finished captions if they
are among the first N; the best N others are the next running beams. Finished captions compete by
sum / generated tokens ** length_penalty. An image is done when N captions have finished and its best running beam, at
its present length, scores no better than the worst of them.

Shape legend: B images, N beams, M beams or candidates, L tokens, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from capfilt.config.decoding import Decoding
from capfilt.models.blip.cached_decoder import CachedDecoder
from capfilt.models.blip.sampling import apply_rules

NEVER = -1.0e9
"""Score of an empty beam slot: the same constant as in transformers, which equal tokens require."""


class Beams(NamedTuple):
    """M sequences per image."""

    scores: Tensor
    """(B, M) float32, by which sequences are ranked."""
    sequences: Tensor
    """(B, M, max_length) int64."""
    logprobs: Tensor
    """(B, M, max_length) float32, log-probability of each token under the model, before the rules."""

    def pick(self, index: Tensor) -> "Beams":
        """Take sequences `index` (B, M') int64 of each image."""
        wide = index[:, :, None].expand(-1, -1, self.sequences.shape[2])
        return Beams(self.scores.gather(1, index), self.sequences.gather(1, wide), self.logprobs.gather(1, wide))

    def join(self, other: "Beams") -> "Beams":
        """Concatenate the sequences of each image, (B, M + M')."""
        return Beams(*(torch.cat(pair, dim=1) for pair in zip(self, other, strict=True)))

    def select(self, images: Tensor) -> "Beams":
        """Take the images at these indices (B',) int64."""
        return Beams(*(part[images] for part in self))


def worth_compacting(ended: Tensor) -> bool:
    """Return whether at least a quarter of the rows, (R,) bool, have ended.

    Copying the others is then cheaper than computing all.
    """
    return int(ended.sum()) * 4 >= ended.shape[0]


def beam_search(
    decoder: CachedDecoder, logits: Tensor, prompt: Tensor, decoding: Decoding, sep: int
) -> tuple[Tensor, Tensor]:
    """Find the best caption of each image.

    Args:
        decoder: has read the prompts of B images, one row each.
        logits: (B, V) float32 after the prompt.
        prompt: (B, L) int64.
        decoding: lengths, penalties, beams.
        sep: the id that ends a caption.

    Returns:
        Ids (B, max_length) int64 with the prompt, undefined after [SEP]; their log-probabilities, same shape, float32.
    """
    start, beams = prompt.shape[1], decoding.num_beams
    logits = logits.repeat_interleave(beams, dim=0)  # (B * N, V)
    decoder.spread(beams)
    running = _first(prompt, decoding)
    finished = running._replace(scores=torch.full_like(running.scores, NEVER))
    best = finished.pick(torch.zeros_like(prompt[:, :1]))
    images = torch.arange(prompt.shape[0], device=prompt.device)  # images that are still in the batch
    done = torch.zeros_like(images, dtype=torch.bool)
    for length in range(start, decoding.max_length):
        candidates, origins = _extend(running, logits, length, decoding, sep)
        ended = candidates.sequences[:, :, length] == sep
        if length + 1 == decoding.max_length:
            ended = torch.ones_like(ended)
        running, chosen = _best_running(candidates, ended, beams)
        finished = _finish(finished, candidates, ended, (length + 1 - start) ** decoding.length_penalty)
        _record(best, finished, images, ~done)
        done |= _is_done(running, finished, (length + 1 - start) ** decoding.length_penalty)
        if done.all() or length + 1 == decoding.max_length:
            break
        rows = origins.gather(1, chosen)  # (B, N), beam of the step before
        rows += torch.arange(rows.shape[0], device=rows.device)[:, None] * beams
        if worth_compacting(done):
            live = (~done).nonzero()[:, 0]
            running, finished = running.select(live), finished.select(live)
            rows, images, done = rows[live], images[live], done[live]
        decoder.select(rows.flatten())
        logits = decoder.step(running.sequences[:, :, length].reshape(-1, 1))
    return best.sequences[:, 0], best.logprobs[:, 0]


def _first(prompt: Tensor, decoding: Decoding) -> Beams:
    """Start with N copies of the prompt, all but the first with score `NEVER`, so that the first candidates differ."""
    beams, room = decoding.num_beams, decoding.max_length - prompt.shape[1]
    sequences = torch.nn.functional.pad(prompt, (0, room))[:, None].repeat(1, beams, 1)
    scores = torch.zeros(sequences.shape[:2], device=prompt.device)
    scores[:, 1:] = NEVER
    return Beams(scores, sequences, torch.zeros(sequences.shape, device=prompt.device))


def _extend(running: Beams, logits: Tensor, length: int, decoding: Decoding, sep: int) -> tuple[Beams, Tensor]:
    """Return the 2N best continuations, and the beam (B, 2N) int64 that each extends; logits (B * N, V)."""
    images, beams = running.scores.shape
    plain = logits.log_softmax(-1)
    forbidden = sep if length < decoding.min_length else None
    past = running.sequences[:, :, :length].flatten(0, 1)
    ruled = apply_rules(plain, past, decoding.repetition_penalty, forbidden)
    summed = ruled.view(images, beams, -1) + running.scores[:, :, None]
    scores, flat = summed.flatten(1).topk(2 * beams)
    origins, ids = flat // plain.shape[1], flat % plain.shape[1]
    candidates = running.pick(origins)._replace(scores=scores)
    candidates.sequences[:, :, length] = ids
    candidates.logprobs[:, :, length] = plain.view(images, -1).gather(1, flat)
    return candidates, origins


def _best_running(candidates: Beams, ended: Tensor, beams: int) -> tuple[Beams, Tensor]:
    """Return the N best candidates that have not ended, and their indices (B, N) among the candidates."""
    alive = candidates._replace(scores=candidates.scores + ended * NEVER)
    chosen = alive.scores.topk(beams)[1]
    return alive.pick(chosen), chosen


def _finish(finished: Beams, candidates: Beams, ended: Tensor, divisor: float) -> Beams:
    """Return the N best of the finished captions and of the first N candidates, if they end now."""
    beams = finished.scores.shape[1]
    counts = ended & (torch.arange(ended.shape[1], device=ended.device) < beams)
    new = candidates._replace(scores=candidates.scores / divisor + ~counts * NEVER)
    merged = finished.join(new)
    return merged.pick(merged.scores.topk(beams)[1])


def _record(best: Beams, finished: Beams, images: Tensor, unsettled: Tensor) -> None:
    """Write the best finished caption of each image that is not done into `best`."""
    for kept, found in zip(best, finished, strict=True):
        kept[images[unsettled]] = found[unsettled][:, :1]


def _is_done(running: Beams, finished: Beams, divisor: float) -> Tensor:
    """Return (B,) bool: N captions have finished and the best running beam beats none of them."""
    worst = finished.scores.min(1).values  # about NEVER as long as fewer than N have finished
    return running.scores[:, 0] / divisor <= worst
