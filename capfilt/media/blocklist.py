"""Known-bad images by the hash of their file. They are not downloaded, not kept and not shown."""

import hashlib
import re
from functools import cached_property
from pathlib import Path

from capfilt.errors import ConfigError

_DIGEST = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{32}")


class FileDigests:
    """Hashes of an image file, each computed on first use and only once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @cached_property
    def sha256(self) -> str:
        """64 lower-case hex digits."""
        return hashlib.sha256(self._data).hexdigest()

    @cached_property
    def md5(self) -> str:
        """32 lower-case hex digits."""
        return hashlib.md5(self._data, usedforsecurity=False).hexdigest()


class BlockList:
    """Hashes listed in the file that `ingest.block_hashes` names: one sha256 or md5 of an image file per line.

    Args:
        path: the file; None gives an empty list.

    Raises:
        ConfigError: the file cannot be read, or a line is not a hash.
    """

    def __init__(self, path: str | None) -> None:
        self._digests = frozenset[str]() if path is None else _read(Path(path))

    def lists(self, *digests: str | None) -> bool:
        """Return True if one of these hashes (lower-case hex digits, or None) is listed."""
        return any(digest in self._digests for digest in digests)

    def blocks(self, digests: FileDigests) -> bool:
        """Return True if the file's sha256 or md5 is listed. Hashes nothing if the list is empty."""
        return bool(self._digests) and self.lists(digests.sha256, digests.md5)

    def content_digest(self) -> str:
        """Sha256 of the list's content, for fingerprints; independent of order, case and white space."""
        return hashlib.sha256("\n".join(sorted(self._digests)).encode()).hexdigest()


def _read(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ingest.block_hashes: {path}: cannot be read ({error})") from error
    bad = next((line for line in lines if not _DIGEST.fullmatch(line)), None)
    if bad is not None:
        found = f"{bad[:80]!r} is neither a sha256 (64 hex digits) nor an md5 (32)"
        raise ConfigError(f"ingest.block_hashes: {path}: {found}")
    return frozenset(line.lower() for line in lines)
