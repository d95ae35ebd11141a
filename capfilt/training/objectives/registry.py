"""Find an objective by the name that a recipe gives under `objective.type`.

Another package adds one by an entry point of the group `capfilt.objectives`, in its pyproject.toml:

    [project.entry-points."capfilt.objectives"]
    contrastive = "their_package.contrastive:ContrastiveObjective"
"""

from importlib.metadata import entry_points

from capfilt.errors import ConfigError
from capfilt.training.objectives.base import Objective
from capfilt.training.objectives.blip.objective import BlipObjective

OBJECTIVES: dict[str, type[Objective]] = {"blip": BlipObjective}
"""Name -> objective, for those in this package."""
DEFAULT = "blip"
"""The objective of a recipe without `objective.type`."""
GROUP = "capfilt.objectives"


def find_objective(name: object, where: str = "recipe") -> type[Objective]:
    """The objective of that name: one of this package, else an installed entry point.

    Args:
        name: the value of `objective.type`.
        where: the recipe's file, for error messages.

    Raises:
        ConfigError: nothing has this name, or what the entry point names is not an Objective.
    """
    if isinstance(name, str) and name in OBJECTIVES:
        return OBJECTIVES[name]
    others = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not isinstance(name, str) or name not in others:
        known = ", ".join([*OBJECTIVES, *sorted(others)])
        raise ConfigError(f"{where}: objective.type: no objective has the name {name!r}; known: {known}")
    try:
        found = others[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: objective.type: {others[name].value} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ConfigError(f"{where}: objective.type: {others[name].value} is not an Objective")
    return found
