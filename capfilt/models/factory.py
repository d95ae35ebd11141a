"""The interface that a system registers so that `registry` can load its models."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from capfilt.models.card import ModelCard, Score
from capfilt.models.protocols import System


@dataclass(frozen=True)
class LoadRequest:
    """Which model to load, and how to run it."""

    model: str
    """The name in the pipeline."""
    card: ModelCard | None
    """The model's card, if it has one."""
    revision: str | None = None
    """Commit of a hub id."""
    device: str = "cpu"
    """A device as torch names it, such as cpu or cuda:1."""
    tokenizer: str | None = None
    """Folder or hub id of a vocabulary, for weights that come without one."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Number format of the computation."""


class SystemFactory(Protocol):
    """Recognises and loads the models of one system. A third party registers an instance."""

    @property
    def model_types(self) -> Collection[str]:
        """Values of `model_type` in config.json that this system reads."""
        ...

    @property
    def scores(self) -> Collection[Score]:
        """Scores of the system's judges, for a model without a card."""
        ...

    @property
    def prompt(self) -> str | None:
        """Start of the captions of the system's captioners, if neither the pipeline nor a card states one."""
        ...

    def load(self, request: LoadRequest) -> System:
        """Load a model.

        Raises:
            ConfigError: no such model, or the model cannot run on this device, with this tokenizer or this precision.
            CheckpointError: its files are not a model of this system.
        """
        ...
