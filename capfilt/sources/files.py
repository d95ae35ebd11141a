"""The files of a source: found by path, folder or glob, named relative to it, identified by size and edges."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from capfilt.config.source import Source, source_name
from capfilt.errors import ConfigError, DataError
from capfilt.sources.values import key_text

EDGE = 64 * 2**10
"""Bytes hashed at each end of a container: a Parquet footer, a tar's last members."""
TEXT_BYTES = 2**20
"""Largest .txt or .json file that is read."""
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Container:
    """A file that contains rows."""

    spec_path: str
    """`ShardSpec.path`: relative to the source's path; "" if that path is the file."""
    name: str
    """Name in keys and messages."""
    path: Path

    def identity(self) -> list[str | int]:
        """Name, size in bytes, sha256 over the first and last 64 KiB. Raises DataError if the file is missing."""
        with reading(self.path), self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            digest.update(file.read(EDGE))
        return [self.name, size, digest.hexdigest()]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of the system (missing, no permission, failing disk) into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it and run again") from error


def containers(source: Source, suffixes: tuple[str, ...]) -> list[Container]:
    """Return the files with one of these suffixes, sorted by name.

    The source's path is a file, a folder (not recursive) or a glob. In folders and globs, names that begin with `.` or
    `_` are left out.

    Raises:
        ConfigError: there is no file.
    """
    given = Path(source.path)
    if given.is_file():
        return [Container("", key_text(given.name), given)]
    base = given if given.is_dir() else _fixed_part(given)
    found = base.iterdir() if given.is_dir() else map(Path, glob.glob(source.path, recursive=True))
    files = [file for file in found if file.name[0] not in "._" and file.name.lower().endswith(suffixes)]
    names = sorted(file.relative_to(base).as_posix() for file in files if file.is_file())
    if not names:
        what = "has no" if given.is_dir() else "names no"
        there = "" if given.exists() or _MAGIC.search(source.path) else " (there is no such path)"
        raise ConfigError(f"sources.{source_name(source)}.path: {given} {what} {' or '.join(suffixes)} file{there}")
    return [Container(name, key_text(name), base / name) for name in names]


def container(files: list[Container], spec_path: str) -> Container:
    """Return the file of a shard. Raises DataError if it no longer exists."""
    for file in files:
        if file.spec_path == spec_path:
            return file
    raise DataError(
        f"{spec_path}: the file existed when the run was planned and is missing now; restore it or plan again"
    )


def _fixed_part(pattern: Path) -> Path:
    """The folders before the first component with a wildcard."""
    fixed = [part for i, part in enumerate(pattern.parts) if not any(map(_MAGIC.search, pattern.parts[: i + 1]))]
    return Path(*fixed) if len(fixed) < len(pattern.parts) else pattern.parent


def read_capped(path: Path, limit: int) -> bytes | None:
    """Return the file's bytes, or None if there are more than `limit`. Raises OSError."""
    with path.open("rb") as file:
        data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    return data if len(data) <= limit else None


def too_large(size: str, limit: int) -> str:
    """The error of a row whose image file is above the limit."""
    return f"image file of {size} is above the cap of {limit} bytes (ingest.max_bytes)"
