"""Model cards: what is known about a model before its weights are read. Needs no torch.

A card is a YAML file. The cards of shipped models and of known hub ids are `models/NAME.yaml`. Any folder of weights
may contain its own card, `card.yaml`. A card is not part of a model's digest.
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
    """What the model can be used as."""
    scores: tuple[Score, ...] = ()
    """The scores that a judge's `match` fills in."""
    licence: str | None = None
    """SPDX identifier of the weights' licence; None if unknown."""
    deterministic: bool = True
    """On a CPU in fp32 or int8, an input gives the same bits in every batch."""
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    """Pinned commit of a hub id."""
    version: str | None = None
    """For a model without files: a version that replaces the digest of weights. Raise it when the output changes."""
    prompt: str | None = None
    """Start of each caption, which is not part of the stored text."""
    decoding: Decoding | None = None
    """Recommended decoding, for readers; a pipeline states its own. None: `Decoding()`."""
    thresholds: Mapping[Score, float] = {}
    """Suggested minimum scores of a text that is kept."""

    def require(self, role: str) -> None:
        """Raise ConfigError, naming the roles that the model has, unless `role` is one of them."""
        if role not in self.roles:
            roles = ", ".join(sorted(self.roles)) or "none"
            raise ConfigError(f"{self.name} has the roles {roles}, not {role}; name another model")


@cache
def cards() -> dict[str, ModelCard]:
    """Return name -> card of every shipped model and every known hub id.

    Raises:
        ConfigError: a file is not a card.
    """
    files = [(root / "models", file) for root in ROOTS for file in sorted((root / "models").rglob("*.yaml"))]
    found = {file.relative_to(root).with_suffix("").as_posix(): file for root, file in files}
    return {name: read_card(file, name) for name, file in found.items()}


def find_card(model: str | Path) -> ModelCard | None:
    """Return the card of a folder (its `card.yaml`), a shipped name or a known hub id; None if there is none.

    Raises:
        ConfigError: the file is not a card.
    """
    path = Path(model)
    if path.exists():
        file = path / "card.yaml"
        return read_card(file, str(model)) if file.is_file() else None
    return cards().get(str(model))


def read_card(file: Path, name: str) -> ModelCard:
    """Read a card from a YAML file. `name` is used if the file has no name.

    Raises:
        ConfigError: the file cannot be read, is not a mapping, or has an unknown key or an invalid value.
    """
    try:
        return ModelCard.model_validate({"name": name} | read_yaml(file))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{file}: not a model card: {key}: {first['msg']}") from error
