"""Read an untrusted tar forwards without extracting it: no file is created, no link followed, no name used as a path.

Python's tarfile reads a long-name or pax header of any stated size into memory (8 GB of zeros fit in 8 MB of gzip).
Here such headers are limited, a member is read only on request, and the rest is skipped: by seeking if the file is not
compressed.
"""

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from capfilt.sources.base import SourceDamagedError

BLOCK = 512
HEADER_BYTES = 2**20
"""Largest long-name or pax header."""
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX_FILE, _PAX_ALL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_FAULTS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class NoEndError(SourceDamagedError):
    """The file ends between two members: everything before is complete."""


@dataclass
class Member:
    """One file in the tar, while it is the current one."""

    name: str
    """As stored, with `/`, without a leading `./`; bad bytes are surrogate escapes."""
    size: int
    fault: str | None
    """Why it must not be used (a link, a device, a name that leaves the folder), or None."""
    _file: BinaryIO
    _left: int

    def read(self) -> bytes:
        """Return all bytes; call once. Raises SourceDamagedError if the file ends too early."""
        self._left -= self.size
        return take(self._file, self.size)

    def finish(self) -> None:
        """Go to the next header. Raises SourceDamagedError if the file ends too early."""
        _skip(self._file, self._left)


def open_tar(path: Path) -> BinaryIO:
    """Open a tar, decompressing gzip, bzip2 and xz. Raises OSError."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(path))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, bz2.open(path))
    return cast(BinaryIO, lzma.open(path)) if magic == b"\xfd7zXZ\0" else path.open("rb")


def members(file: BinaryIO) -> Iterator[Member]:
    """Yield every member except folders, in order. Read a member before asking for the next one.

    Raises:
        SourceDamagedError: the file is cut or not a tar.
        NoEndError: only its end mark is missing.
    """
    override: dict[str, str] = {}
    while True:
        info = _header(file)
        if info is None:
            return
        size = _pax_size(override, info.size)
        if size < 0:
            raise SourceDamagedError(f"the member {info.name!r} states {size} bytes")
        padded = -(-size // BLOCK) * BLOCK
        if info.type in (_PAX_FILE, _PAX_ALL, _LONG_NAME, _LONG_LINK):
            override |= _extended(file, info, size)
            _skip(file, padded - size)
            continue
        name = override.get("path", info.name).replace("\0", "").removeprefix("./")
        override = {}
        member = Member(name, size, _fault(name, info.type), file, padded)
        if info.type != tarfile.DIRTYPE and name and not name.endswith("/"):
            yield member
        member.finish()


def _header(file: BinaryIO) -> tarfile.TarInfo | None:
    block = take(file, BLOCK, may_end=True)
    if not block:
        raise NoEndError("ends without its end mark; it may have been cut")
    if block.count(0) == BLOCK:
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise SourceDamagedError(f"no tar header where one should be ({error})") from error


def _extended(file: BinaryIO, info: tarfile.TarInfo, size: int) -> dict[str, str]:
    """Path and size of the next member, from a header before it."""
    if size > HEADER_BYTES:
        raise SourceDamagedError(f"a header of {size} bytes is above the cap of {HEADER_BYTES}")
    data = take(file, size)
    if info.type == _LONG_NAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    return _pax(data) if info.type == _PAX_FILE else {}


def _pax(data: bytes) -> dict[str, str]:
    """Parse records `<length> <key>=<value>\\n`; keep path and size."""
    found, at = {}, 0
    while at < len(data):
        digits = data[at : at + 8].split(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) < length <= len(data) - at:
            raise SourceDamagedError("a pax header that cannot be parsed")
        key, _, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        at += length
    return found


def _pax_size(override: dict[str, str], size: int) -> int:
    stated = override.get("size", str(size))
    if not stated.isascii() or not stated.lstrip("-").isdigit() or len(stated) > 19:
        raise SourceDamagedError(f"a member states a size of {stated[:40]!r}")
    return int(stated)


def _fault(name: str, kind: bytes) -> str | None:
    if kind not in _REGULAR:
        return f"{_FAULTS.get(kind, f'of the tar type {kind!r}')}, not a file"
    if name.startswith(("/", "\\")):
        return "an absolute name"
    return "a name with '..'" if ".." in name.replace("\\", "/").split("/") else None


def take(file: BinaryIO, size: int, may_end: bool = False) -> bytes:
    """Read exactly `size` bytes, or none at the end if `may_end`. Raises SourceDamagedError if there are fewer."""
    try:
        data = file.read(size)
    except _DAMAGE as error:
        raise SourceDamagedError(f"the compressed data is cut or damaged ({error})") from error
    if len(data) < size and (data or not may_end):
        raise SourceDamagedError(f"ends {size - len(data)} bytes too early")
    return data


def _skip(file: BinaryIO, size: int) -> None:
    """Skip bytes. Reads the last one, because seeking beyond the end raises no error."""
    if size <= 0:
        return
    try:
        file.seek(size - 1, os.SEEK_CUR)
    except _DAMAGE as error:
        raise SourceDamagedError(f"the compressed data is cut or damaged ({error})") from error
    take(file, 1)
