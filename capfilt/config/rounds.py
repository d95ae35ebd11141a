"""The sections of a pipeline file that describe rounds: what is trained and measured after `emit`."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from capfilt.config.yaml_file import ConfigModel


class Pretrain(ConfigModel):
    """After `emit`: a new model from human pairs, kept web texts and kept captions (paper section 3.3)."""

    recipe: dict[str, Any]
    """A recipe of `capfilt train` without `recipe`, `out` and `data.sources`."""
    start: Literal["new", "continue"] = "new"
    """new: every round starts from the recipe's initialisation (the paper). continue: from the last round's model."""
    weights: dict[Literal["human", "web", "synthetic"], Annotated[float, Field(gt=0)]] = Field(default={})
    """How often an epoch sees a text of that origin; 1 by default."""
    texts: Literal["all", "sample"] = "all"
    """all: every text of an image is a sample of its own. sample: every image is one sample, and one of its texts is
    drawn each time, by `weights`."""


class Finetune(ConfigModel):
    """After `pretrain`, on the human pairs only."""

    recipe: dict[str, Any]
    """A recipe of `capfilt train` without `recipe`, `out`, `data.sources` and `model.init`."""


class Evaluate(ConfigModel):
    """What the round's models are measured on: `pairs`, or human rows that `holdout` keeps from all training."""

    pairs: str | None = None
    """Parquet file with an image column. Name it in `dedup.decontaminate` too, so that no web image repeats it."""
    text: str | list[str] = "text"
    """Its text columns."""
    holdout: float | None = Field(default=None, gt=0, lt=1)
    """Share of the human images that is held out, chosen by the hash of the file."""

    @model_validator(mode="after")
    def _check(self) -> "Evaluate":
        if (self.pairs is None) == (self.holdout is None):
            raise ValueError("give either pairs (a file) or holdout (a share of the human rows)")
        return self
