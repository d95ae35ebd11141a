"""How the data name a synthetic text's captioner, and its decoding as canonical JSON."""

from pathlib import PurePath

from capfilt.config.decoding import Decoding
from capfilt.store.fingerprint import canonical


def model_name(model: str) -> str:
    """Return the model's name in the data: shipped names and hub ids as they are, a local path's last part."""
    return PurePath(model).name if PurePath(model).is_absolute() else model


def decoding_json(decoding: Decoding, seed: int, sample: int) -> str:
    """Return canonical JSON: the settings that have an effect with the method, the seed and the sample's number."""
    return canonical({**decoding.in_effect(), "seed": seed, "sample": sample})
