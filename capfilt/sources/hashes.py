"""Compare an image file with the hashes that its source states."""

from capfilt.media.blocklist import FileDigests
from capfilt.sources.base import RawRow


def hash_mismatch(row: RawRow, digests: FileDigests) -> str | None:
    """Describe how a file's hashes differ from `row.sha256` or `row.md5`; None if they agree or none is stated."""
    if row.sha256 is not None and row.sha256 != digests.sha256:
        return f"its sha256 is {digests.sha256}, the source states {row.sha256}"
    if row.md5 is not None and row.md5 != digests.md5:
        return f"its md5 is {digests.md5}, the source states {row.md5}"
    return None
