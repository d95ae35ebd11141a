"""Model cards: what is known of a model before its weights are read. Needs no torch.

A card is a YAML file. Those that ship are `models/NAME.yaml`, for the models that ship and for known hub ids; a folder
of weights may hold one of its own, `card.yaml`. A card is no part of a model's digest.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from capfilt.config.decoding import Decoding
from capfilt.config.yaml_file import ROOTS, ConfigModel, read_yaml
from capfilt.errors import ConfigError

Role = Literal["captioner", "judge", "embedder"]
Score = Literal["itc", "itm", "vqa", "rank"]


class ModelCard(ConfigModel):
    """What a model is and what it can do."""

    name: str
    """A name under `models/`, a hub id, or whatever the model calls itself."""
    system: str
    """Which code runs it: blip, fake, or the name of an entry point `capfilt.systems`."""
    roles: tuple[Role, ...] = ()
    scores: tuple[Score, ...] = ()
    """Those that its `match` fills in."""
    licence: str | None = None
    """SPDX identifier of the weights; None if unknown."""
    deterministic: bool = True
    """The same input gives the same bits whatever is beside it: on a CPU in fp32 or int8."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """Pinned commit of a hub id."""
    version: str | None = None
    """For a model without files: what it computes, in place of a digest of weights. Raised when its output changes."""
    prompt: str | None = None
    """Put before each caption."""
    decoding: Decoding | None = None
    """How its captions are drawn best; None: `Decoding()`."""
    thresholds: Mapping[Score, float] = {}
    """Suggested least scores of a text that is kept."""

    def require(self, role: str) -> None:
        """Raise ConfigError, naming the roles that the model has, unless `role` is one of them."""
        if role not in self.roles:
            roles = ", ".join(sorted(self.roles)) or "none"
            raise ConfigError(f"{self.name} has the roles {roles}, not {role}; name another model")


@cache
def cards() -> dict[str, ModelCard]:
    """Name -> card of every model that ships and every known hub id.

    Raises:
        ConfigError: a file that is no card.
    """
    files = [(root / "models", file) for root in ROOTS for file in sorted((root / "models").rglob("*.yaml"))]
    found = {file.relative_to(root).with_suffix("").as_posix(): file for root, file in files}
    return {name: read_card(file, name) for name, file in found.items()}


def find_card(model: str | Path) -> ModelCard | None:
    """The card of a folder (`card.yaml` in it), or of a shipped name or known hub id; None if there is none.

    Raises:
        ConfigError: a file that is no card.
    """
    path = Path(model)
    if path.exists():
        file = path / "card.yaml"
        return read_card(file, str(model)) if file.is_file() else None
    return cards().get(str(model))


def read_card(file: Path, name: str) -> ModelCard:
    """The card in a YAML file; `name` where it has none.

    Raises:
        ConfigError: unreadable, no mapping, an unknown key or a value that a card does not take.
    """
    try:
        return ModelCard.model_validate({"name": name} | read_yaml(file))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{file}: not a model card: {key}: {first['msg']}") from error
