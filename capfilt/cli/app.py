"""`capfilt`: the command line."""

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

_GOES_ON = {
    "train": "; the same command goes on from the last checkpoint",
    "run": "; finished shards stay, and the same command goes on from them",
}


def parser() -> argparse.ArgumentParser:
    """Commands and options."""
    top = argparse.ArgumentParser(prog="capfilt", description="BLIP CapFilt: caption, filter, bootstrap, train.")
    top.add_argument("--version", action="version", version=f"capfilt {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    pipelines.add(commands)
    models.add(commands)
    return top


def _terminated(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code.

    0 done, 1 something is wrong (verify), 2 something to mend, 3 the work cannot go on, 4 done, but rows that killed
    their worker were quarantined, 130 interrupted.
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
        print(f"\ncapfilt {args.command}: interrupted{_GOES_ON.get(args.command, '')}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
