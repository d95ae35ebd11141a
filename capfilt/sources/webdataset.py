"""WebDataset tars: consecutive members with the same key (the name up to its first dot) are a sample.

The image, the text and the `.json` of a sample are read; everything else, including pickles, is skipped unread. Faults
of a tar become rows: a link, a device, a name that leaves the folder, a field that occurs twice, members of a sample
that are not consecutive (`tar_member`), a cut file (`source_damaged`).
A row's key is the json's `uid` if it has one, else `<tar's name>/<members' key>`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import PurePosixPath

from capfilt.config.source import Source
from capfilt.sources.base import RawRow, SourceDamagedError, at_positions, require_rows, split_into_shards
from capfilt.sources.columns import (
    IMAGE,
    TEXT,
    ColumnRoles,
    Stated,
    find_roles,
    key_of,
    one_row_per_text,
    row_without_image,
)
from capfilt.sources.files import TEXT_BYTES, Container, container, containers, reading, too_large
from capfilt.sources.tar import Member, NoEndError, members, open_tar
from capfilt.sources.values import json_object, key_text
from capfilt.store.layout import ShardSpec

SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass
class Sample:
    """Members with the same key; fields that are not needed have no content."""

    stem: str
    """The key as in the members' names."""
    key: str
    """The key, made unique in its tar."""
    fields: dict[str, bytes | None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Field -> the member's file name."""
    reason: str | None = None
    error: str | None = None

    def set_fault(self, reason: str, error: str) -> None:
        """Set the reason and error; later faults are ignored."""
        if self.reason is None:
            self.reason, self.error = reason, error


class WebDatasetReader:
    """A tar, a folder of tars or a glob. See `Reader`."""

    def __init__(self, source: Source, max_bytes: int, files: list[Container] | None = None) -> None:
        self.source, self._max_bytes = source, max_bytes
        self.files = containers(source, SUFFIXES) if files is None else files
        self._stated = tuple(source.columns.items())

    def shard_specs(self, rows_per_shard: int) -> list[ShardSpec]:
        totals = [(file.spec_path, sum(1 for _ in self._rows(file, images=False))) for file in self.files]
        specs = [split_into_shards(self.source, path, total, rows_per_shard) for path, total in totals]
        return require_rows(list(chain.from_iterable(specs)), self.source)

    def identity(self) -> list[list[str | int]]:
        return [file.identity() for file in self.files]

    def rows(self, spec: ShardSpec, positions: Sequence[int] | None = None) -> Iterator[RawRow]:
        rows = self._rows(container(self.files, spec.path), images=True)
        return at_positions(islice(rows, spec.start, spec.stop), positions)

    def _rows(self, file: Container, images: bool) -> Iterator[RawRow]:
        stem = tar_stem(file.name)
        for sample in samples(file, self._stated, self._max_bytes, images):
            yield from sample_rows(sample, self._stated, f"{stem}/{sample.key}", ("uid",))


def tar_stem(name: str) -> str:
    """A tar's name without its suffix."""
    return next(name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix))


def samples(file: Container, stated: Stated, max_bytes: int, images: bool) -> Iterator[Sample]:
    """Yield all samples of a tar and its faults, in order.

    Args:
        file: the tar.
        stated: items of `Source.columns`.
        max_bytes: largest image file.
        images: False reads only .json, which is enough to count rows.

    Raises:
        DataError: the file is missing.
    """
    with reading(file.path):
        opened = open_tar(file.path)
    with opened:
        seen: Counter[str] = Counter()
        current: Sample | None = None
        try:
            for member in members(opened):
                stem, name = _split(member.name)
                if member.fault is not None:
                    yield _fault(member, seen)
                elif not PurePosixPath(stem).name and name:
                    continue
                else:
                    if current is None or current.stem != stem:
                        if current is not None:
                            yield current
                        current = _begin(stem, seen)
                    _add(current, name, member, _limit(name, stated, max_bytes, images))
        except NoEndError as error:
            yield from [current] if current is not None else []
            yield Sample("", _unique(seen, "(rest)"), reason="source_damaged", error=f"{file.name}: {error}")
        except SourceDamagedError as error:
            what = "all" if current is None else f"the sample {key_text(current.stem)!r} and all after it"
            message = f"{file.name}: {what} cannot be read: {error}"
            yield Sample("", _unique(seen, "(rest)"), reason="source_damaged", error=message)
        else:
            yield from [current] if current is not None else []


def _split(name: str) -> tuple[str, str]:
    """Split into key and field: `a/b.left.jpg` -> `a/b`, `left.jpg`. A hidden file's key ends in `/` or is empty."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _unique(seen: Counter[str], key: str) -> str:
    key = key_text(key)
    seen[key] += 1
    return key if seen[key] == 1 else f"{key}#{seen[key] - 1}"


def _fault(member: Member, seen: Counter[str]) -> Sample:
    message = f"the member {key_text(member.name)!r} is {member.fault}"
    return Sample("", _unique(seen, member.name), reason="tar_member", error=message)


def _begin(stem: str, seen: Counter[str]) -> Sample:
    sample = Sample(stem, _unique(seen, stem))
    if sample.key != key_text(stem):
        sample.set_fault("tar_member", f"a part of {key_text(stem)!r} that lies apart from the rest of it")
    return sample


def _limit(name: str, stated: Stated, max_bytes: int, images: bool) -> int | None:
    """The most bytes to read of a field; None if it is not read."""
    if name == "json":
        return TEXT_BYTES
    if not images:
        return None
    roles = dict(stated)
    if name == roles.get("image") or name in IMAGE:
        return max_bytes
    return TEXT_BYTES if name in TEXT or name in roles.values() else None


def _add(sample: Sample, name: str, member: Member, limit: int | None) -> None:
    if name in sample.fields:
        sample.set_fault("tar_member", f"has two members of the suffix {name!r}")
        return
    sample.fields[name], sample.names[name] = None, key_text(PurePosixPath(member.name).name)
    if limit is None:
        return
    if member.size <= limit:
        sample.fields[name] = member.read()
    elif limit == TEXT_BYTES:
        sample.set_fault("tar_member", f"its {name!r} has {member.size} bytes; at most {limit} are read")
    else:
        sample.set_fault("too_many_bytes", too_large(f"{member.size} bytes", limit))


def sample_rows(sample: Sample, stated: Stated, key: str, key_names: tuple[str, ...]) -> Iterator[RawRow]:
    """Yield the rows of a sample: one, or one per text if its json has a list of texts.

    Args:
        sample: with image, text and json read.
        stated: items of `Source.columns`.
        key: used if the json has no key.
        key_names: lower-case names of the json's columns that may be the key.
    """
    data = sample.fields.get("json")
    record = json_object(data) if data is not None else {}
    inside, columns = find_roles(tuple(record or ()), stated), find_roles(tuple(sample.fields), stated)
    if sample.reason is None and inside.key is not None and inside.key.lower() in (*key_names, dict(stated).get("key")):
        key = key_of(record or {}, inside, key)
    row = row_without_image(key, record or {}, inside)
    if record is None:
        row = replace(row, meta=row.meta | {"json_unreadable": True})
    if sample.reason is not None:
        yield replace(row, reason=sample.reason, error=sample.error)
        return
    image = sample.fields.get(columns.image) if columns.image else None
    row = replace(row, image=image, path=sample.names.get(columns.image) if columns.image else None)
    yield from one_row_per_text(row, _text(sample, columns, record or {}, inside))


def _text(sample: Sample, columns: ColumnRoles, record: dict[str, object], inside: ColumnRoles) -> object:
    """The text's own member if there is one, else the json's text."""
    if columns.text is not None:
        return sample.fields[columns.text]
    return record.get(inside.text) if inside.text else None
