"""Generate captions with the image-grounded decoder: nucleus sampling, greedy and beam search.

The paper generates its captions by nucleus sampling with p = 0.9 (section 4.3, Table 2): noisier than beam search, and
better for bootstrapping. The official `generate` adds a repetition penalty of 1.1 and lengths 10 .. 30. Captions to be
*measured* come from beam search with 3 beams, lengths 5 .. 20.

Each step computes one token per row, with a key-value cache (`cached_decoder`, or `static` on a GPU). The prompt is
read once per image, and rows whose caption has ended leave the batch (not on a GPU).

Shape legend: B images, R rows (captions or beams, grouped by image), L tokens, D width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from capfilt.config.decoding import Decoding
from capfilt.errors import InputError
from capfilt.models.blip.beam import beam_search, worth_compacting
from capfilt.models.blip.cached_decoder import CachedDecoder
from capfilt.models.blip.cross import image_keys
from capfilt.models.blip.med import MED
from capfilt.models.blip.sampling import apply_rules, draw, keyed_noise, nucleus
from capfilt.models.blip.static import StaticDecoder

NUCLEUS_ROWS = 4
"""Rows whose nucleus is computed at a time on a CPU, because a vocabulary of float64 per row leaves the cache (24 rows
of 30524 tokens take 14 ms at once, 8 ms four at a time)."""

Generated = tuple[list[int], float]
"""Generated ids, without prompt and [SEP], and the mean natural-log probability of the generated tokens."""


@torch.inference_mode()
def generate(
    med: MED,
    image_states: Tensor,
    prompt_ids: Tensor,
    uids: Sequence[str],
    decoding: Decoding,
    samples: Sequence[int] = (0,),
    static: StaticDecoder | None = None,
) -> list[list[Generated]]:
    """Generate one caption per image and sample number, all in one batch.

    Greedy and beam search give the tokens of transformers' `generate` with the same options (beam: `early_stopping`
    False), and all samples of an image are equal. A nucleus caption depends on the other rows only through the rounding
    of matrix products of another size. On a CPU, in fp32 with one thread, there is no such rounding (`packed`).

    Args:
        med: with a decoder, in eval mode.
        image_states: (B, P + 1, D), from the vision tower.
        prompt_ids: (L,) int64, [DEC] and the prompt, without [SEP]; the same for all rows.
        uids: B row names, for the noise.
        decoding: the method and its options.
        samples: sample numbers of the captions, part of the noise's key.
        static: the model's decoder for a GPU. Without it, and for beam search, a `CachedDecoder` is used.

    Returns:
        Per image and sample, the generated ids (without prompt and [SEP]) and the mean natural-log probability of the
        generated tokens, with [SEP] if it was generated. The log-softmax is that of the model's own logits, before
        penalty, minimum length, temperature and nucleus.

    Raises:
        InputError: a MED without decoder or in train mode; another number of uids than images; a prompt that does not
            begin with [DEC] or leaves no room for a caption; more positions than the model has; logits that are not
            finite.
    """
    _check(med, image_states, prompt_ids, uids, decoding)
    if not uids or not samples:
        return [[] for _ in uids]
    draws = len(samples) if decoding.method == "nucleus" else 1
    prompt, sep = prompt_ids.to(image_states.device).expand(len(uids), -1), med.config.text.sep_id
    if decoding.method == "beam" and decoding.num_beams > 1:
        decoder = _cached(med, image_states, decoding.num_beams, decoding)
        sequences, logprobs = beam_search(decoder, _read_prompt(decoder, prompt, uids), prompt, decoding, sep)
    else:
        noise = [keyed_noise(decoding.seed, uids, sample, decoding.max_length) for sample in samples[:draws]]
        by_row = torch.stack(noise, dim=1).flatten(0, 1).to(prompt.device)  # (B * draws, L)
        if static is not None:
            static.begin(image_states, draws, decoding.max_length)
        stepper = static or _cached(med, image_states, draws, decoding)
        logits = _read_prompt(stepper, prompt, uids)
        sequences, logprobs = _token_by_token(stepper, logits, prompt, by_row, decoding, sep)
    start = prompt_ids.shape[0]
    both = zip(sequences[:, start:].tolist(), logprobs[:, start:].tolist(), strict=True)
    generated = [_until_sep(ids, scores, sep) for ids, scores in both]
    return [generated[i : i + draws] * (len(samples) // draws) for i in range(0, len(generated), draws)]


def _check(med: MED, image_states: Tensor, prompt_ids: Tensor, uids: Sequence[str], decoding: Decoding) -> None:
    text = med.config.text
    if not med.config.decoder:
        raise InputError("this MED has no decoder; load a captioner (text_decoder.* weights)")
    if med.training:
        raise InputError("this MED is in train mode; call .eval() before captioning")
    if len(uids) != len(image_states):
        raise InputError(f"{len(uids)} uids for {len(image_states)} images; give one uid per image")
    if prompt_ids.dim() != 1 or prompt_ids.tolist()[:1] != [text.dec_id]:
        raise InputError(f"prompt_ids {prompt_ids.tolist()} must be one row that begins with [DEC] ({text.dec_id})")
    if prompt_ids.shape[0] >= decoding.max_length:
        raise InputError(f"the prompt has {prompt_ids.shape[0]} tokens, max_length is {decoding.max_length}; raise it")
    if decoding.max_length > text.max_positions:
        raise InputError(f"max_length {decoding.max_length} is beyond the model's {text.max_positions} positions")


def _cached(med: MED, image_states: Tensor, rows: int, decoding: Decoding) -> CachedDecoder:
    """Create a decoder for `rows` rows per image."""
    keys = image_keys(med.text, image_states, rows * decoding.max_length, decoding=True)
    return CachedDecoder(med, keys, len(image_states), decoding.max_length)


def _read_prompt(decoder: CachedDecoder | StaticDecoder, prompt: Tensor, uids: Sequence[str]) -> Tensor:
    """Feed the prompt (B, L) int64 -> logits (B, V) float32. Raises InputError if they are not finite."""
    logits = decoder.step(prompt)
    if broken := (~logits.isfinite().all(-1)).nonzero()[:, 0].tolist():
        names = ", ".join(uids[row] for row in broken[:6])
        raise InputError(f"the decoder's logits are not finite for {names}; look at the pixels, weights and precision")
    return logits


def _until_sep(ids: list[int], logprobs: list[float], sep: int) -> Generated:
    """Cut a row at [SEP] and average its log-probabilities, that of [SEP] included."""
    length = ids.index(sep) if sep in ids else len(ids)
    scored = logprobs[: length + 1]
    return ids[:length], sum(scored) / len(scored)


def _token_by_token(
    decoder: CachedDecoder | StaticDecoder,
    logits: Tensor,
    prompt: Tensor,
    noise: Tensor,
    decoding: Decoding,
    sep: int,
) -> tuple[Tensor, Tensor]:
    """Decode greedily or by nucleus sampling.

    Args:
        decoder: has read the prompt.
        logits: (B, V) float32 after the prompt.
        prompt: (B, L) int64.
        noise: (R, max_length) uniform numbers, R a multiple of B.
        decoding: lengths, penalty, method.
        sep: the id that ends a caption.

    Returns:
        Ids (R, max_length) int64 with the prompt, undefined after [SEP]; their log-probabilities, same shape, float32.
    """
    draws = noise.shape[0] // prompt.shape[0]
    prompt, logits = prompt.repeat_interleave(draws, dim=0), logits.repeat_interleave(draws, dim=0)
    decoder.spread(draws)
    sequences = torch.nn.functional.pad(prompt, (0, decoding.max_length - prompt.shape[1]))
    logprobs = torch.zeros(sequences.shape, device=prompt.device)
    rows = torch.arange(prompt.shape[0], device=prompt.device)  # rows that are still in the batch
    ended = torch.zeros_like(rows, dtype=torch.bool)
    for length in range(prompt.shape[1], decoding.max_length):
        forbidden = sep if length < decoding.min_length else None
        scores = apply_rules(logits, sequences[rows, :length], decoding.repetition_penalty, forbidden)
        ids = choose_tokens(scores, noise[rows, length], decoding)
        sequences[rows, length] = ids
        logprobs[rows, length] = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        ended |= ids == sep
        checks = length % decoder.check_every == 0
        if length + 1 == decoding.max_length or (checks and ended.all()):
            break
        if checks and isinstance(decoder, CachedDecoder) and worth_compacting(ended):
            live = (~ended).nonzero()[:, 0]
            decoder.select(live)
            rows, ids, ended = rows[live], ids[live], ended[live]
        logits = decoder.step(ids[:, None])
    return sequences, logprobs


def choose_tokens(scores: Tensor, uniform: Tensor, decoding: Decoding) -> Tensor:
    """Choose a token per row: scores (R, V), uniform (R,) -> ids (R,) int64."""
    if decoding.method == "nucleus":
        at_once = NUCLEUS_ROWS if scores.device.type == "cpu" else len(scores)
        parts = zip(torch.split(scores, at_once), torch.split(uniform, at_once), strict=True)
        return torch.cat([draw(nucleus(part, decoding.top_p, decoding.temperature), noise) for part, noise in parts])
    return scores.argmax(-1)
