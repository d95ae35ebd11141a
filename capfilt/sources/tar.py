"""A stranger's tar, read forwards and never extracted: no file is made, no link followed, no name is a path.

Only headers are trusted to be hostile, not the library: Python's tarfile reads a long-name or pax header of any stated
size into memory (8 GB of zeros fit in 8 MB of gzip). Here such headers are capped, a member is read only when it is
asked for, and the rest is skipped: by seeking where the file is not compressed.
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
    """The file ends between two members: everything before is whole."""


@dataclass
class Member:
    """One file in the tar, while it is the current one."""

    name: str
    """As stored, with `/`, without a leading `./`; bad bytes are surrogate escapes."""
    size: int
    fault: str | None
    """Why it must not be used: a link, a device, a name that leaves the folder."""
    _file: BinaryIO
    _left: int

    def read(self) -> bytes:
        """All of it; once. Raises SourceDamagedError if the file ends before."""
        self._left -= self.size
        return take(self._file, self.size)

    def finish(self) -> None:
        """Go to the next header. Raises SourceDamagedError if the file ends before."""
        _skip(self._file, self._left)


def open_tar(path: Path) -> BinaryIO:
    """The tar's bytes, decompressed if they are gzip, bzip2 or xz. Raises OSError."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(path))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, bz2.open(path))
    return cast(BinaryIO, lzma.open(path)) if magic == b"\xfd7zXZ\0" else path.open("rb")


def members(file: BinaryIO) -> Iterator[Member]:
    """Everything in the tar but folders, in order; at most one may be read at a time, before the next is asked for.

    Raises SourceDamagedError where the file is cut or is no tar; NoEndError if only its end mark is missing.
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
    """What a header before a member says about it: its path and size."""
    if size > HEADER_BYTES:
        raise SourceDamagedError(f"a header of {size} bytes is above the cap of {HEADER_BYTES}")
    data = take(file, size)
    if info.type == _LONG_NAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    return _pax(data) if info.type == _PAX_FILE else {}


def _pax(data: bytes) -> dict[str, str]:
    """`<length> <key>=<value>\\n` records; path and size only."""
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
    """Exactly `size` bytes; none at a clean end if that may be. Raises SourceDamagedError if there are fewer."""
    try:
        data = file.read(size)
    except _DAMAGE as error:
        raise SourceDamagedError(f"the compressed data is cut or damaged ({error})") from error
    if len(data) < size and (data or not may_end):
        raise SourceDamagedError(f"ends {size - len(data)} bytes too early")
    return data


def _skip(file: BinaryIO, size: int) -> None:
    """The last byte is read: seeking beyond the end goes unnoticed."""
    if size <= 0:
        return
    try:
        file.seek(size - 1, os.SEEK_CUR)
    except _DAMAGE as error:
        raise SourceDamagedError(f"the compressed data is cut or damaged ({error})") from error
    take(file, 1)
