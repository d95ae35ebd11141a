"""The commands, in groups; each is a few lines over the Python API of the same words."""

import argparse
from collections.abc import Callable
from typing import Any


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], told: str, after: str
) -> argparse.ArgumentParser:
    """A sub-command that `run` carries out; `told`: its description, first line first; `after`: examples."""
    first = told.strip().split("\n")[0]
    form = argparse.RawDescriptionHelpFormatter
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=first, description=told.strip(), epilog=after.strip(), formatter_class=form
    )
    made.set_defaults(run=run)
    return made


def positive(text: str) -> int:
    """An option's value: a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 up")
    return int(text)
