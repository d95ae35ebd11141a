"""Known-bad images by hash: neither asked for, nor kept, nor shown."""

import hashlib
import re
from pathlib import Path

from capfilt.errors import ConfigError

_DIGEST = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{32}")


class Blocked:
    """`ingest.block_hashes`: a file with one sha256 or md5 of an image file a line; empty without one.

    Raises ConfigError for a file or line that cannot be used.
    """

    def __init__(self, path: str | None) -> None:
        self._digests = frozenset[str]() if path is None else _read(Path(path))

    def has(self, *digests: str | None) -> bool:
        """Whether one of these (lower-case hex digits) is listed."""
        return any(digest in self._digests for digest in digests)

    def bytes(self, data: bytes) -> bool:
        """Whether an image file's sha256 or md5 is listed."""
        if not self._digests:
            return False
        return self.has(hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest())

    def digest(self) -> str:
        """sha256 of the list's content, for fingerprints."""
        return hashlib.sha256("\n".join(sorted(self._digests)).encode()).hexdigest()


def _read(path: Path) -> frozenset[str]:
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ingest.block_hashes: {path}: cannot be read ({error})") from error
    bad = next((line for line in lines if not _DIGEST.fullmatch(line)), None)
    if bad is not None:
        told = f"{bad[:80]!r} is neither a sha256 (64 hex digits) nor an md5 (32)"
        raise ConfigError(f"ingest.block_hashes: {path}: {told}")
    return frozenset(line.lower() for line in lines)
