"""Decoding settings of a captioner. Separate from the decoder, so that reading a file does not load torch."""

from typing import Any, Literal

from pydantic import Field, model_validator

from capfilt.config.yaml_file import ConfigModel

_EVERY_METHOD = ("method", "min_length", "max_length", "repetition_penalty", "prompt")
_OF_METHOD = {"nucleus": ("top_p", "temperature"), "greedy": (), "beam": ("num_beams", "length_penalty")}


class Decoding(ConfigModel):
    """How captions are generated. The defaults are the paper's, except for the penalty (official code: 1.1)."""

    method: Literal["nucleus", "greedy", "beam"] = "nucleus"
    """nucleus: sample from the most probable tokens. greedy: take the most probable one. beam: search."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """nucleus: probability mass that is kept; there is no hidden top-k."""
    temperature: float = Field(default=1.0, gt=0)
    """nucleus: divides the logits."""
    num_beams: int = Field(default=3, ge=1)
    """beam: 1 is greedy."""
    max_length: int = Field(default=30, ge=2)
    """Largest number of tokens, counting [DEC], the prompt (5 tokens with [DEC] in BERT's vocabulary), the generated
    tokens and [SEP], like the official code and transformers' `max_length`. 20 in the paper's evaluation."""
    min_length: int = Field(default=10, ge=0)
    """[SEP] is not allowed before this number of tokens, counted in the same way. 5 in the paper's evaluation."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """All methods; the prompt's tokens count as seen."""
    length_penalty: float = 1.0
    """beam: a finished caption's score is its log-probability / (generated tokens ** this)."""
    seed: int = 0
    """nucleus: first part of the key of the random numbers."""
    prompt: str | None = None
    """Put before the caption and taken off the result. Left out: the captioner's own (BLIP: `a picture of `)."""

    @classmethod
    def measured(cls, max_length: int = 30, prompt: str | None = None) -> "Decoding":
        """Return the settings for measured captions: beam 3, at least 5 tokens (section 5.2; on COCO at most 20)."""
        return cls(method="beam", num_beams=3, min_length=5, max_length=max_length, prompt=prompt)

    def in_effect(self) -> dict[str, Any]:
        """Return the settings that have an effect with this method, without `seed`, by name."""
        return {name: getattr(self, name) for name in (*_EVERY_METHOD, *_OF_METHOD[self.method])}

    @model_validator(mode="after")
    def _lengths(self) -> "Decoding":
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is more than max_length {self.max_length}")
        return self
