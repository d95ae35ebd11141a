"""Captions from the image-grounded decoder: nucleus sampling, greedy and beam search.

The paper makes its captions by nucleus sampling with p = 0.9 (section 4.3, Table 2): noisier than beam search, and
better for bootstrapping. The official `generate` adds a repetition penalty of 1.1 and lengths 10 .. 30; captions
to be *measured* come from beam search with 3 beams, lengths 5 .. 20.

Each step computes one token: self-attention keys and values lie in a cache of `max_length` made at the first step,
those of the image are the caller's, made once an image; an image's beams ask them as one query. A row whose caption
has ended leaves the batch.

Shape legend: B images, R rows (B, or B * beams), L tokens, D width, H heads, K head width, V vocabulary.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from capfilt.errors import InputError
from capfilt.models.blip.beam import beam_search, worth_leaving
from capfilt.models.blip.layers import KV
from capfilt.models.blip.med import MED, select_kv
from capfilt.models.blip.sampling import apply_rules, draw, keyed_noise, nucleus
from capfilt.models.blip.text import AttentionBlock, TextLayer
from capfilt.models.decoding import Decoding


class CachedDecoder:
    """The decoder's rows, each fed token by token; a row attends to its own past and to its image."""

    def __init__(self, med: MED, image_kv: list[KV], max_length: int) -> None:
        """image_kv: every layer's keys and values of B images, each (B, H, P + 1, K)."""
        self._med, self._image_kv, self._max_length = med, image_kv, max_length
        self._layers = cast("list[TextLayer]", list(med.text.layers))
        self._cache: list[KV] = []
        self._length = 0

    def step(self, ids: Tensor) -> Tensor:
        """ids (R, L) int64, the next tokens -> (R, V) float32 logits after the last. Rows lie image by image."""
        x = self._med.text.embed(ids, self._length)
        images = self._image_kv[0][0].shape[0]
        for i, layer in enumerate(self._layers):
            x = self._attend(i, cast(AttentionBlock, layer.self_attention["decoder"]), x)
            x = layer.cross_and_feed(x.reshape(images, -1, x.shape[-1]), self._image_kv[i]).view_as(x)
        self._length += ids.shape[1]
        logits: Tensor = self._med.lm_head(x[:, -1], self._med.text.word.weight)
        return logits.float()

    def _attend(self, i: int, block: AttentionBlock, x: Tensor) -> Tensor:
        start, end = self._length, self._length + x.shape[1]
        new = block.attention.project_kv(x)
        if i == len(self._cache):
            room = (x.shape[0], new[0].shape[1], self._max_length, new[0].shape[3])
            self._cache.append((new[0].new_empty(room), new[1].new_empty(room)))
        for kept, fresh in zip(self._cache[i], new, strict=True):
            kept[:, :, start:end] = fresh
        keys, values = (kept[:, :, :end] for kept in self._cache[i])
        out: Tensor = block(x, (keys, values), None, causal=start == 0)
        return out

    def select_rows(self, rows: Tensor) -> None:
        """Go on with these rows' pasts, (R',) int64; a row may be taken several times. Images stay as they are."""
        self._cache = select_kv(self._cache, rows)

    def select_images(self, images: Tensor) -> None:
        """Go on with these images, (B',) int64; call `select_rows` with the rows that belong to them."""
        self._image_kv = select_kv(self._image_kv, images)


@torch.inference_mode()
def generate(
    med: MED, image_kv: list[KV], prompt_ids: Tensor, uids: Sequence[str], decoding: Decoding, sample: int = 0
) -> list[tuple[list[int], float]]:
    """One caption for each of B images.

    Greedy and beam search give the tokens of transformers' `generate` with the same options (beam: `early_stopping`
    False). A nucleus caption does not depend on the other rows, but for the rounding of matrix products of another
    size: in fp32 none of 384 captions (9586 tokens) of a random model changed with the batch; under bf16 some will.

    Args:
        med: with a decoder, in eval mode.
        image_kv: `med.cross_kv` of the images; keys and values with B rows.
        prompt_ids: (L,) int64, [DEC] and the prompt, without [SEP]; the same for all rows.
        uids: B row names, for the noise.
        decoding: the method and its options.
        sample: number of the caption, for several of one row.

    Returns:
        For each image the generated ids (without prompt and [SEP]) and the mean natural-log probability of the
        generated tokens, [SEP] too if it came: log-softmax of the model's logits as they are, before penalty, minimum
        length, temperature and nucleus.

    Raises:
        InputError: a MED without decoder or in train mode; another number of uids; a prompt that does not begin with
            [DEC] or leaves no room; more positions than the model has; logits that are not finite.
    """
    _check(med, image_kv, prompt_ids, uids, decoding)
    if not uids:
        return []
    decoder = CachedDecoder(med, image_kv, decoding.max_length)
    prompt = prompt_ids.to(image_kv[0][0].device).expand(len(uids), -1)
    sep = med.config.text.sep_id
    logits = decoder.step(prompt)
    if broken := (~logits.isfinite().all(-1)).nonzero()[:, 0].tolist():
        names = ", ".join(uids[row] for row in broken[:6])
        raise InputError(f"the decoder's logits are not finite for {names}; look at the pixels, weights and precision")
    if decoding.method == "beam" and decoding.num_beams > 1:
        sequences, logprobs = beam_search(decoder, logits, prompt, decoding, sep)
    else:
        noise = keyed_noise(decoding.seed, uids, sample, decoding.max_length).to(prompt.device)
        sequences, logprobs = _one_by_one(decoder, logits, prompt, noise, decoding, sep)
    start = prompt_ids.shape[0]
    both = zip(sequences[:, start:].tolist(), logprobs[:, start:].tolist(), strict=True)
    return [_cut(ids, scores, sep) for ids, scores in both]


def _check(med: MED, image_kv: list[KV], prompt_ids: Tensor, uids: Sequence[str], decoding: Decoding) -> None:
    text = med.config.text
    if not med.config.decoder:
        raise InputError("this MED has no decoder; load a captioner (text_decoder.* weights)")
    if med.training:
        raise InputError("this MED is in train mode; call .eval() before captioning")
    if len(uids) != image_kv[0][0].shape[0]:
        raise InputError(f"{len(uids)} uids for {image_kv[0][0].shape[0]} images; give one uid an image")
    if prompt_ids.dim() != 1 or prompt_ids.tolist()[:1] != [text.dec_id]:
        raise InputError(f"prompt_ids {prompt_ids.tolist()} must be one row that begins with [DEC] ({text.dec_id})")
    if prompt_ids.shape[0] >= decoding.max_length:
        raise InputError(f"the prompt has {prompt_ids.shape[0]} tokens, max_length is {decoding.max_length}; raise it")
    if decoding.max_length > text.max_positions:
        raise InputError(f"max_length {decoding.max_length} is beyond the model's {text.max_positions} positions")


def _cut(ids: list[int], logprobs: list[float], sep: int) -> tuple[list[int], float]:
    length = ids.index(sep) if sep in ids else len(ids)
    scored = logprobs[: length + 1]
    return ids[:length], sum(scored) / len(scored)


def _one_by_one(
    decoder: CachedDecoder, logits: Tensor, prompt: Tensor, noise: Tensor, decoding: Decoding, sep: int
) -> tuple[Tensor, Tensor]:
    """Greedy and nucleus: prompt (B, L) -> ids (B, max_length) int64 and log-probabilities; void after [SEP]."""
    sequences = torch.nn.functional.pad(prompt, (0, decoding.max_length - prompt.shape[1]))
    logprobs = torch.zeros(sequences.shape, device=prompt.device)
    rows = torch.arange(prompt.shape[0], device=prompt.device)  # the batch's rows among all
    ended = torch.zeros_like(rows, dtype=torch.bool)
    for length in range(prompt.shape[1], decoding.max_length):
        forbidden = sep if length < decoding.min_length else None
        scores = apply_rules(logits, sequences[rows, :length], decoding.repetition_penalty, forbidden)
        ids = _choose(scores, noise[rows, length], decoding)
        sequences[rows, length] = ids
        logprobs[rows, length] = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        ended |= ids == sep
        if ended.all() or length + 1 == decoding.max_length:
            break
        if worth_leaving(ended):
            live = (~ended).nonzero()[:, 0]
            decoder.select_images(live)
            decoder.select_rows(live)
            rows, ids, ended = rows[live], ids[live], ended[live]
        logits = decoder.step(ids[:, None])
    return sequences, logprobs


def _choose(scores: Tensor, uniform: Tensor, decoding: Decoding) -> Tensor:
    if decoding.method == "nucleus":
        return draw(nucleus(scores, decoding.top_p, decoding.temperature), uniform)
    return scores.argmax(-1)
