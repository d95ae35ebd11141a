"""The two lists of hosts in a source's settings: `allow_hosts` in the pipeline file, and the file `block_hosts`."""

import re
from collections.abc import Sequence
from pathlib import Path

from capfilt.download.reasons import FetchError, shown
from capfilt.download.url_policy import ascii_host
from capfilt.errors import ConfigError

_ENTRY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]\\?#]+)(:(?P<port>[0-9]{1,5}))?")


def allow_list(entries: Sequence[str]) -> frozenset[str]:
    """Check entries (`host` or `host:port`, as in a URL) and return them in lower case. Raises ConfigError."""
    for entry in entries:
        found = _ENTRY.fullmatch(entry)
        if found is None or int(found["port"] or 1) not in range(1, 65536):
            raise ConfigError(
                f"allow_hosts: {shown(entry)} is not a host; write host or host:port as in the URL, IPv6 in brackets"
            )
    return frozenset(entry.lower() for entry in entries)


def read_hosts(path: Path) -> frozenset[str]:
    """Read a file with one host per line; `#` starts a comment. Returns hosts in ASCII.

    Raises:
        ConfigError: names the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"block_hosts: {path} cannot be read ({error})") from error
    return frozenset(_host(path, number, line) for number, line in enumerate(lines, 1) if _without_comment(line))


def _without_comment(line: str) -> str:
    return line.partition("#")[0].strip()


def _host(path: Path, number: int, line: str) -> str:
    try:
        return ascii_host(_without_comment(line))
    except FetchError as error:
        raise ConfigError(
            f"block_hosts: {path} line {number}: {error}; write one host per line, without scheme, port or path"
        ) from error
