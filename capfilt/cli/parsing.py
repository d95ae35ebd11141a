"""Helpers to define commands and options."""

import argparse
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    description: str,
    epilog: str = "",
) -> argparse.ArgumentParser:
    """Add a command to the parser.

    Args:
        commands: what `add_subparsers` returned.
        name: the name of the command.
        run: the function to call with the parsed arguments; it returns the exit code, None for 0.
        description: text above the options; its first line is also shown in the list of commands.
        epilog: text below the options, such as examples.

    Returns:
        The command's own parser, for its options.
    """
    description = description.strip()
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description.split("\n")[0],
        description=description,
        epilog=epilog.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def positive(text: str) -> int:
    """Parse an option's value as a whole number from 1 up. Raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 up")
    return int(text)
