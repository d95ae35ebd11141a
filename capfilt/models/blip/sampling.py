"""From logits to a token: the rules that forbid or weaken tokens, nucleus sampling, and its keyed noise.

The noise of a token is a hash of (seed, uid, sample, position), not the state of a generator: a row's caption depends
neither on the rows beside it, nor on its place among them, nor on the process. Inside the nucleus the cumulated
distribution runs by token id, not by probability: two nearly equal probabilities change places under rounding (another
batch size is another order of summation), and the order by probability would then hand out another token (measured with
2e-6 of noise on flat logits: ten times as often).

Shape legend: R rows, V vocabulary, L tokens so far.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

CLOSE = 1e-9
"""Far more than double sums of a vocabulary differ by, far less than most tokens have."""

_SHIFT = 45
_LEAST = (1023 - 40) << 7
_CLASSES = (41 << 7) + 1
"""Of sizes 2**-40 to 1; what is smaller is in class 0."""


def keyed_uniform(seed: int, uid: str, sample: int, position: int) -> float:
    """A number in [0, 1), equally distributed, that is a function of the four and of nothing else.

    Args:
        seed: any integer.
        uid: the row's name, any text.
        sample: number of the caption, where a row gets several.
        position: index of the token in the whole sequence ([DEC] is 0).

    Returns:
        A multiple of 2**-53: the first 53 bits of BLAKE2b (8 bytes, big-endian) over "seed:sample:position:uid".
    """
    key = f"{seed}:{sample}:{position}:{uid}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 11) * 2.0**-53


def keyed_noise(seed: int, uids: Sequence[str], sample: int, length: int) -> Tensor:
    """`keyed_uniform` of each uid at positions 0 .. length - 1: (R, length) float64, on the CPU."""
    noise = [[keyed_uniform(seed, uid, sample, position) for position in range(length)] for uid in uids]
    return torch.tensor(noise, dtype=torch.float64).reshape(len(uids), length)


def apply_rules(scores: Tensor, sequences: Tensor, penalty: float, forbidden: int | None) -> Tensor:
    """Repetition penalty and minimum length, as transformers' two logits processors.

    Args:
        scores: (R, V) float, logits or log-probabilities.
        sequences: (R, L) int64, all tokens so far, prompt and [DEC] too.
        penalty: a seen token's score is divided by it if positive, multiplied if negative (Keskar et al. 2019,
            section 4.1); 1.0 changes nothing.
        forbidden: an id that may not come now ([SEP], before the minimum length).

    Returns:
        (R, V), a new tensor where anything changed.
    """
    if penalty != 1.0:
        seen = scores.gather(1, sequences)
        scores = scores.scatter(1, sequences, torch.where(seen < 0, seen * penalty, seen / penalty))
    if forbidden is not None:
        scores = scores.clone()
        scores[:, forbidden] = -torch.inf
    return scores


def nucleus(scores: Tensor, top_p: float, temperature: float = 1.0) -> Tensor:
    """Probabilities cut to the nucleus (Holtzman et al. 2020, section 3.1); there is no top-k.

    The nucleus is the smallest set of most probable tokens whose mass is at least `top_p`; the token that crosses is
    in. Equal probabilities enter by ascending id.

    Args:
        scores: (R, V) float logits.
        top_p: in (0, 1].
        temperature: > 0, divides the scores.

    Returns:
        (R, V) float64, 0 outside the nucleus; not normalised again.
    """
    probabilities = torch.softmax(scores.double() / temperature, dim=-1)
    if scores.device.type != "cpu":
        return _sorted(probabilities, top_p)
    return _by_size(probabilities, top_p)


def _sorted(probabilities: Tensor, top_p: float) -> Tensor:
    """The nucleus by its definition."""
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = F.pad(ordered.cumsum(-1)[:, :-1], (1, 0))
    return torch.zeros_like(probabilities).scatter(1, ids, ordered * (mass_before < top_p))


def _by_size(probabilities: Tensor, top_p: float) -> Tensor:
    """The same without a sort of V: tokens are put into classes of about equal size, and only one class is sorted.

    Classes are 2**-7 of an octave wide, by a double's exponent and first bits, so that equals are in one; all larger
    classes than that in which the mass reaches `top_p` are in, all smaller ones are out. Sums in another order differ
    in their last bits: a row whose mass comes within `CLOSE` of `top_p` anywhere that matters is sorted. So are rows
    at `top_p` 1. (8 rows of 30524 tokens take 2 ms on one core, sorted 20.)
    """
    size = (probabilities.view(torch.int64) >> _SHIFT).sub_(_LEAST).clamp_(0, _CLASSES - 1)  # (R, V)
    mass = probabilities.new_zeros(len(size), _CLASSES).scatter_add_(1, size, probabilities)
    larger = mass.flip(-1).cumsum(-1).flip(-1)  # (R, C), of this class and all larger ones
    edge = (larger >= top_p).sum(-1, keepdim=True) - 1  # (R, 1), the class where top_p is reached
    before = F.pad(larger, (0, 1)).gather(1, edge + 1)[:, 0]
    kept = probabilities * (size > edge)
    for row, (at, above) in enumerate(zip(edge[:, 0].tolist(), before.tolist(), strict=True)):
        ids = (size[row] == at).nonzero()[:, 0] if at > 0 else size.new_empty(0)
        ordered, places = probabilities[row, ids].sort(descending=True, stable=True)
        reached = F.pad(ordered.cumsum(0), (1, 0)) + above  # (C + 1,)
        if at <= 0 or (reached - top_p).abs().min() < CLOSE:
            kept[row] = _sorted(probabilities[row : row + 1], top_p)[0]
        else:
            kept[row, ids[places]] = ordered * (reached[:-1] < top_p)
    return kept


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulated weight, by ascending id, first exceeds `uniform` of the whole.

    Args:
        weights: (R, V) float64, >= 0, some above 0 in each row.
        uniform: (R,) float64 in [0, 1), on the same device.

    Returns:
        (R,) int64, ids of weight above 0.
    """
    cumulated = weights.cumsum(-1)
    total = cumulated[:, -1]
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))  # rounding up would fall off
    return torch.searchsorted(cumulated, target[:, None], right=True)[:, 0]
