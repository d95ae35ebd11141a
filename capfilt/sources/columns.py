"""Assign roles to columns: names stated by the user first, then the names in common use, in upper or lower case.

If several names fit, the first one of the list is used (`text` before `caption`), and of several spellings the
lower-case one. Hashes are compared with the image only if they are hashes of its bytes: img2dataset states those of the
download, before it re-encodes, so if there is a `status` column they are kept in `meta` and not compared.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from capfilt.errors import DataError
from capfilt.sources.base import RawRow
from capfilt.sources.values import Json, key_text, optional_text, plain, texts

IMAGE = ("image", "img", "jpg", "jpeg", "png", "webp", "gif")
TEXT = ("text", "caption", "alt", "txt")
URL = ("url", "image_url")
KEY = ("uid", "key", "__key__")
META = (
    "similarity", "punsafe", "pwatermark", "aesthetic", "nsfw", "language", "hash", "md5", "sha256", "face_bboxes",
    "width", "height", "original_width", "original_height", "key", "licence", "license", "credit", "split",
)  # fmt: skip
Stated = tuple[tuple[str, str], ...]
"""Items of `Source.columns`: (role, column name); "" means that there is no such column."""
_HEX = {"sha256": re.compile(r"[0-9a-fA-F]{64}"), "md5": re.compile(r"[0-9a-fA-F]{32}")}


@dataclass(frozen=True)
class ColumnRoles:
    """Column names of one file by role, spelt as in the file; None if there is no such column."""

    image: str | None
    text: str | None
    url: str | None
    key: str | None
    status: str | None
    error: str | None
    meta: tuple[tuple[str, str], ...]
    """(lower-case name, name in the file)."""

    @property
    def names(self) -> list[str]:
        """All column names with a role, each once."""
        found = (self.image, self.text, self.url, self.key, self.status, self.error, *(name for _, name in self.meta))
        return list(dict.fromkeys(name for name in found if name is not None))


@lru_cache(maxsize=256)
def find_roles(names: tuple[str, ...], stated: Stated = ()) -> ColumnRoles:
    """Find the role of each column.

    Args:
        names: of all columns of a file.
        stated: items of `Source.columns`; a stated column that is missing gives None.
    """
    given = dict(stated)

    def pick(role: str, aliases: tuple[str, ...]) -> str | None:
        if role in given:
            return given[role] if given[role] in names else None
        return next((found for alias in aliases if (found := _spelt(names, alias))), None)

    image, text, url, key = pick("image", IMAGE), pick("text", TEXT), pick("url", URL), pick("key", KEY)
    taken = (image, text, url, key)
    meta = tuple((alias, name) for alias in META if (name := _spelt(names, alias)) and name not in taken)
    return ColumnRoles(image, text, url, key, _spelt(names, "status"), _spelt(names, "error_message"), meta)


def _spelt(names: tuple[str, ...], alias: str) -> str | None:
    """The name that equals this alias up to case; the lower-case spelling first."""
    return alias if alias in names else next((name for name in names if name.lower() == alias), None)


def check_columns(names: list[str], stated: Stated, where: str) -> None:
    """Raises DataError if a stated column is missing, or a column with a role exists twice."""
    for role, name in stated:
        if name and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{where}: no column {name!r} (columns.{role}); it has {', '.join(names)}{hint}")
    for name in find_roles(tuple(names), stated).names:
        if names.count(name) > 1:
            raise DataError(f"{where}: column {name!r} exists {names.count(name)} times; give them different names")


def key_of(record: Mapping[str, object], columns: ColumnRoles, default: str) -> str:
    """Return the row's own key as text, or the default if it has none."""
    value = None if columns.key is None else record.get(columns.key)
    return default if value is None or value in ("", b"") else key_text(value)


def row_without_image(key: str, record: Mapping[str, object], columns: ColumnRoles) -> RawRow:
    """Create a row with url, meta, stated hashes and the failure that img2dataset recorded; without image and text."""
    status = optional_text(record.get(columns.status)) if columns.status else None
    meta = {alias: plain(record.get(name)) for alias, name in columns.meta if record.get(name) is not None}
    sha256, md5 = (None, None) if status else (take_hash(meta, "sha256"), take_hash(meta, "md5"))
    url = optional_text(record.get(columns.url)) if columns.url else None
    row = RawRow(key, url=url, meta=meta, sha256=sha256, md5=md5)
    if status is None or not status.startswith("failed"):
        return row
    message = optional_text(record.get(columns.error)) if columns.error else None
    return replace(row, reason="download_failed", error=message or status)


def take_hash(meta: dict[str, Json], kind: str) -> str | None:
    """Remove a well-formed sha256 or md5 from `meta` and return it in lower case; None if there is none."""
    value = meta.get(kind)
    if not isinstance(value, str) or not _HEX[kind].fullmatch(value):
        return None
    del meta[kind]
    return value.lower()


def one_row_per_text(row: RawRow, text: object) -> Iterator[RawRow]:
    """Yield one row per text: the first with the row's key, the n-th further one with `key#n`."""
    for n, (one, repaired) in enumerate(texts(text)):
        meta = row.meta | {"text_mended": True} if repaired else row.meta
        yield replace(row, key=f"{row.key}#{n}" if n else row.key, text=one, meta=meta)
