"""Lets `python -m capfilt.cli` do what `capfilt` does."""

import sys

from capfilt.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
