"""What the data say of a synthetic text's origin: the captioner's name, and its decoding as canonical JSON."""

from pathlib import PurePath

from capfilt.config.decoding import Decoding
from capfilt.store.fingerprint import canonical

_SETTINGS = ("method", "min_length", "max_length", "repetition_penalty", "prompt")
_METHOD_SETTINGS = {
    "nucleus": ("top_p", "temperature"),
    "greedy": (),
    "beam": ("num_beams", "length_penalty"),
}


def model_name(model: str) -> str:
    """What the data say of a model: a shipped name or hub id as it is, a path's last part."""
    return PurePath(model).name if PurePath(model).is_absolute() else model


def decoding_json(decoding: Decoding, seed: int, sample: int) -> str:
    """Canonical JSON of the settings that have a meaning for the method, of seed and sample."""
    names = (*_SETTINGS, *_METHOD_SETTINGS[decoding.method])
    return canonical({**{name: getattr(decoding, name) for name in names}, "seed": seed, "sample": sample})
