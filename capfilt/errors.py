"""The one exception family that a user of capfilt may see.

A `CapfiltError` says what was found, where (file, row or key) and what to do. The command line prints it without
a traceback and exits with its `exit_code`; anything else that escapes is a bug in capfilt.
"""


class CapfiltError(Exception):
    """Something that the user can mend: a path, a config key, a row, a checkpoint."""

    exit_code = 2


class ConfigError(CapfiltError):
    """A YAML file or option has a key or value that capfilt does not take."""


class DataError(CapfiltError):
    """A data file or row cannot be used as given."""


class CheckpointError(CapfiltError):
    """Weights that are not of the stated architecture, or a damaged training checkpoint."""


class InputError(CapfiltError, ValueError):
    """A call's argument has the wrong shape, type or range."""


class TrainingError(CapfiltError):
    """Training cannot go on (a loss is NaN, a rank died)."""

    exit_code = 3


class RunError(CapfiltError):
    """A run cannot go on (disk full, a stage's worker dies whatever its input); finished shards stay."""

    exit_code = 3


def listed(names: list[str], limit: int) -> str:
    """The first `limit` names in order, and how many more there are: for messages."""
    return ", ".join(sorted(names)[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
