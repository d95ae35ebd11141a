"""What a system registers so that `registry` can load its models."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from capfilt.models.card import ModelCard, Score
from capfilt.models.protocols import System


@dataclass(frozen=True)
class LoadRequest:
    """Which model to load, and how it is to be run."""

    model: str
    """As the pipeline names it."""
    card: ModelCard | None
    """The model's card, if it has one."""
    revision: str | None = None
    """Commit of a hub id."""
    device: str = "cpu"
    """As torch names it."""
    tokenizer: str | None = None
    """Folder or hub id of a vocabulary, for weights that come without."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"


class SystemFactory(Protocol):
    """What a third party registers: which models its system reads, and how one is loaded."""

    @property
    def model_types(self) -> Collection[str]:
        """Values of `model_type` in config.json that are this system's."""
        ...

    @property
    def scores(self) -> Collection[Score]:
        """Scores that its judges write, where no card says so."""
        ...

    @property
    def prompt(self) -> str | None:
        """What its captioners put before a caption, where neither the pipeline nor a card says so."""
        ...

    def load(self, request: LoadRequest) -> System:
        """The model, ready to be used.

        Raises:
            ConfigError: no such model, or a device, tokenizer or precision that it cannot be run with.
            CheckpointError: its files are not of this system.
        """
        ...
