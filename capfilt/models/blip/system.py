"""The factory with which the registry loads a BLIP."""

from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.identity import PROMPT
from capfilt.models.blip.precision import apply_precision
from capfilt.models.card import Score
from capfilt.models.factory import LoadRequest


class BlipFactory:
    """See `models.factory.SystemFactory`."""

    model_types = ("blip",)
    scores: tuple[Score, ...] = ("itc", "itm")
    prompt = PROMPT

    def load(self, request: LoadRequest) -> Blip:
        """Load a BLIP in the requested precision. Raises as `Blip.load` and `apply_precision`."""
        blip = Blip.load(request.model, revision=request.revision, device=request.device, tokenizer=request.tokenizer)
        return apply_precision(blip, request.precision)
