"""Find the system that runs a model, and load the model. Only this module knows the systems by name.

The model's card names the system, or else `model_type` in its config.json. A file of weights without either is an
official BLIP `.pth`. A third party registers a `SystemFactory` under the entry-point group `capfilt.systems`:

    [project.entry-points."capfilt.systems"]
    mine = "my_package.system:FACTORY"
"""

import json
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, cast

from capfilt.config.pipeline import CaptionSettings, ModelSettings
from capfilt.errors import ConfigError
from capfilt.models.card import Score, find_card
from capfilt.models.device import pick_device
from capfilt.models.factory import LoadRequest, SystemFactory
from capfilt.models.hub import resolve
from capfilt.models.protocols import Captioner, EmbeddingJudge, System

GROUP = "capfilt.systems"
"""Entry-point group of third-party systems."""


def _blip() -> SystemFactory:
    from capfilt.models.blip.system import BlipFactory

    return BlipFactory()


def _fake() -> SystemFactory:
    from capfilt.models.fake import FakeFactory

    return FakeFactory()


OWN: dict[str, Callable[[], SystemFactory]] = {"blip": _blip, "fake": _fake}
"""Name -> function that imports and returns the factory, for capfilt's own systems."""

_REGISTERED: dict[str, SystemFactory] = {}
"""Name -> factory that was passed to `register`."""


def register(name: str, factory: SystemFactory) -> None:
    """Add a system in this process only, for a notebook, a script or a test with `local=True`.

    Ray workers are other processes; they need an installed package with an entry point. A second call with the same
    name replaces the factory of the first.
    """
    _REGISTERED[name] = factory
    factories.cache_clear()


@cache
def factories() -> dict[str, SystemFactory]:
    """Return name -> factory of every system: capfilt's own, registered ones, then installed packages' by name.

    Raises:
        ConfigError: a package's entry point cannot be imported, or two systems have the same name.
    """
    found = {name: make() for name, make in OWN.items()}
    if taken := found.keys() & _REGISTERED.keys():
        raise ConfigError(f"register({min(taken)!r}): the name is in use; take another")
    found |= _REGISTERED
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in found:
            raise ConfigError(f"entry point {entry.name} of {GROUP} ({entry.value}): the name is in use; rename it")
        try:
            found[entry.name] = entry.load()
        except Exception as error:
            raise ConfigError(
                f"entry point {entry.name} of {GROUP} ({entry.value}): cannot be loaded: {error}"
            ) from error
    return found


def find_factory(model: str, revision: str | None = None) -> SystemFactory:
    """Return the factory of a model's system.

    Args:
        model: a name that has a card, or anything that `hub.resolve` accepts.
        revision: commit of a hub id.

    Raises:
        ConfigError: no such model, or an unknown system; the message lists the known ones.
    """
    card, known = find_card(model), factories()
    if card is not None:
        if card.system in known:
            return known[card.system]
        raise ConfigError(f"model {model!r}: its card names the system {card.system!r}; known: {', '.join(known)}")
    path = resolve(model, revision, weights=False)
    if path.is_file() or (kind := _model_type(path)) is None:
        return known["blip"]  # an official .pth, or a folder without config.json, of which BLIP reports what is missing
    for factory in known.values():
        if kind in factory.model_types:
            return factory
    types = sorted({name for factory in known.values() for name in factory.model_types})
    raise ConfigError(
        f"model {model!r}: {path}/config.json has model_type {kind!r}, which no system reads; known: {', '.join(types)}"
    )


def _model_type(folder: Path) -> str | None:
    """Return `model_type` of a folder's config.json; None if the file is missing or cannot be read."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_system(
    model: str | Path,
    revision: str | None = None,
    device: str | None = "cpu",
    tokenizer: str | None = None,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
) -> System:
    """Load a model of any system.

    Args:
        model: a folder, a file, a shipped name or a hub id (`hub.resolve`), or a name that has a card, such as fake.
        revision: commit of a hub id without a card.
        device: cpu, cuda or cuda:1; None or "auto": cuda if there is one.
        tokenizer: folder or hub id of a vocabulary, for weights that come without one.
        precision: number format of the computation.

    Raises:
        ConfigError: no such model, system or device, or a precision that the device does not support.
        CheckpointError: its files are not a model of its system.
    """
    name, place = str(model), str(pick_device(device))
    return find_factory(name, revision).load(LoadRequest(name, find_card(name), revision, place, tokenizer, precision))


def load_captioner(settings: CaptionSettings) -> Captioner:
    """Load the captioner of a pipeline, with the decoding of its settings.

    Raises:
        ConfigError: as `load_system`, or the model is not a captioner.
        CheckpointError: as `load_system`.
    """
    system = _load(settings)
    system.card.require("captioner")
    captioner = cast(Captioner, system)
    captioner.decoding = settings.decoding.model_copy(update={"seed": settings.seed})
    return captioner


def load_judge(settings: ModelSettings) -> EmbeddingJudge:
    """Load the judge of a pipeline, which also embeds images.

    Raises:
        ConfigError: as `load_system`, or the model is not a judge, or does not embed images.
        CheckpointError: as `load_system`.
    """
    system = _load(settings)
    for role in ("judge", "embedder"):
        system.card.require(role)
    return cast(EmbeddingJudge, system)


def judge_scores(settings: ModelSettings) -> frozenset[Score]:
    """Return the scores that a pipeline's judge writes, from its card or else its system. Reads no weights.

    Raises:
        ConfigError: no such model or system.
    """
    card = find_card(settings.model)
    if card is not None and card.scores:
        return frozenset(card.scores)
    return frozenset(find_factory(settings.model, settings.revision).scores)


def default_prompt(settings: ModelSettings) -> str | None:
    """Return the default prompt of a pipeline's captioner, from its card or else its system. Reads no weights.

    Raises:
        ConfigError: no such model or system.
    """
    card = find_card(settings.model)
    if card is not None and card.prompt is not None:
        return card.prompt
    return find_factory(settings.model, settings.revision).prompt


def _load(settings: ModelSettings) -> System:
    return load_system(settings.model, settings.revision, settings.device, settings.tokenizer, settings.precision)
