"""Whether an image file is the one that its source states."""

import hashlib

from capfilt.sources.base import RawRow


def mismatch(row: RawRow, data: bytes) -> tuple[str, str | None]:
    """(sha256 of the bytes, 64 hex digits; how they are not what `row.sha256` and `row.md5` state, or None)."""
    sha256 = hashlib.sha256(data).hexdigest()
    if row.sha256 is not None and row.sha256 != sha256:
        return sha256, f"its sha256 is {sha256}, the source states {row.sha256}"
    if row.md5 is not None:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return sha256, f"its md5 is {md5}, the source states {row.md5}" if row.md5 != md5 else None
    return sha256, None
