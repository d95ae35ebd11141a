"""The exceptions that capfilt raises for its users.

A `CapfiltError` says what was found, where (file, row or key) and what to do. The command line prints it without
a traceback and exits with its `exit_code`. Any other exception is a bug in capfilt.
"""


class CapfiltError(Exception):
    """Something that the user can repair: a path, a config key, a row, a checkpoint."""

    exit_code = 2


class ConfigError(CapfiltError):
    """A YAML file or an option has a key or value that is unknown or not allowed."""


class DataError(CapfiltError):
    """A data file or a row is missing, damaged or of the wrong form."""


class CheckpointError(CapfiltError):
    """Weights do not have the stated architecture, or a training checkpoint is damaged."""


class InputError(CapfiltError, ValueError):
    """An argument of a call has the wrong shape, type or range."""


class TrainingError(CapfiltError):
    """Training cannot continue (a loss is NaN, a rank died)."""

    exit_code = 3


class RunError(CapfiltError):
    """A run cannot continue (disk full, a worker dies whatever its input); finished shards are kept."""

    exit_code = 3


def listed(names: list[str], limit: int) -> str:
    """Return the first `limit` of the sorted names and the number of the others: `a, b and 3 more`."""
    return ", ".join(sorted(names)[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
