"""The `capfilt` program: builds the parser, runs a command, and turns errors into messages and exit codes."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console
from rich.logging import RichHandler

from capfilt.cli import models, pipelines
from capfilt.errors import CapfiltError
from capfilt.version import __version__

_DESCRIPTION = """
CapFilt of BLIP: clean up noisy image-text pairs, and train on the result.

capfilt captions images, scores every text against its image, and writes the texts that fit as a new data set. Start
with `capfilt run demo`: it needs no network and no GPU, and takes about a minute.
"""
_RESUME_HINT = {
    "train": "; the same command continues from the last checkpoint",
    "run": "; finished shards are kept, and the same command continues with the others",
}
"""Command -> what to tell a user who interrupted it."""


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands and options. It imports no torch, so that `--help` is fast."""
    top = argparse.ArgumentParser(
        prog="capfilt", description=_DESCRIPTION.strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"capfilt {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    pipelines.add_commands(commands)
    models.add_commands(commands)
    return top


def _terminated(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of this process by default.

    Returns:
        The exit code. 0: done. 1: `verify` found damage. 2: the user has to repair something. 3: the machine cannot
        continue. 4: done, but rows that killed their worker were quarantined. 130: interrupted.
    """
    args = parser().parse_args(argv)
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("capfilt").setLevel(logging.INFO)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return args.run(args) or 0
    except CapfiltError as error:
        print(f"capfilt {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\ncapfilt {args.command}: interrupted{_RESUME_HINT.get(args.command, '')}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
