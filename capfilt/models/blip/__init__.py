"""BLIP: the model (MED, paper section 3.1), checkpoints, decoding, and the adapter to capfilt's protocols."""

from capfilt.config.decoding import Decoding
from capfilt.models.blip.adapter import Blip

__all__ = ["Blip", "Decoding"]
