"""BLIP: our MED (paper section 3.1), hub checkpoints, decoding, and the adapter to capfilt's protocols."""

from capfilt.models.blip.adapter import Blip
from capfilt.models.decoding import Decoding

__all__ = ["Blip", "Decoding"]
