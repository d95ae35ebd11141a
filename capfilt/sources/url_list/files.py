"""The files of a list of URLs, on this machine or on any filesystem that fsspec supports.

DuckDB reads remote Parquet in place through `Remote`, never through its httpfs extension: that would be loaded from the
network, and supports neither hf:// nor gs:// credentials. Read-ahead is off because DuckDB requests whole column
chunks: 2 of the 11 columns of a 64 MB list took 10 MB in 17 requests, and 58 MB with fsspec's default cache.
Options of a filesystem are set by its environment variables (FSSPEC_S3_ANON=true, HF_TOKEN, ...).
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from capfilt.config.source import Source, source_name
from capfilt.errors import CapfiltError, ConfigError, DataError, RunError
from capfilt.sources.files import Container, containers
from capfilt.sources.values import key_text

SCHEME = "capfilt"
"""Scheme of the paths by which DuckDB opens remote files: capfilt://0, capfilt://1, ..."""
_TEXT = ("csv", "tsv", "json", "jsonl", "ndjson")
_PACKED = {"": "uncompressed", ".gz": "gzip", ".zst": "zstd"}
SUFFIXES = (".parquet", *(f".{kind}{packed}" for kind in _TEXT for packed in _PACKED))
_UNDERSTOOD = ".parquet, .csv, .tsv, .json, .jsonl or .ndjson (all but Parquet also with .gz or .zst)"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_WEB = ("http://", "https://")
_MAGIC = re.compile(r"[*?[]")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
"""fsspec's protocol -> the package that it needs."""
EXTRAS = {"s3fs": "s3", "gcsfs": "gs", "aiohttp": "urls"}
"""Package -> the extra of capfilt that installs it."""
_STATES = ("ETag", "etag", "blob_id", "Content-MD5", "md5Hash", "mtime", "LastModified", "Last-Modified", "created")
"""Keys by which filesystems report that a file changed; the first one present is used."""

_NETWORK = "look at the network and run again"


@dataclass(frozen=True)
class ListFile:
    """One file of the list, or the copy of it that is read."""

    name: str
    """For keys: relative to the source's path, or the file's own name."""
    label: str
    """For messages."""
    kind: str
    """parquet, csv, tsv, json."""
    compression: str
    """uncompressed, gzip, zstd."""
    path: str
    """Path on `fs`, or on this machine if `fs` is None."""
    fs: Any = None
    facts: tuple[str | int, ...] = ()
    """Name, size in bytes (-1: unknown) and state of a remote file."""

    def identity(self) -> list[str | int]:
        """Facts that change when the file changes. Raises DataError if a local file is missing."""
        return list(self.facts) or Container("", self.name, Path(self.path)).identity()

    def open(self) -> Any:
        """For pyarrow: a path, or a remote file that can seek."""
        return self.path if self.fs is None else self.fs.open(self.path, "rb", cache_type="none")


class Remote(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """The remote files for DuckDB, addressed by their position in the list."""

    protocol = SCHEME
    cachable = False

    def __init__(self, files: list[ListFile]) -> None:
        super().__init__()
        self._files = files

    def _at(self, path: str) -> ListFile:
        return self._files[int(path.rsplit("/", 1)[-1])]

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> list[str]:
        return [self._strip_protocol(path)]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": self._at(path).facts[1], "type": "file"}

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(0, UTC)

    def open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        return self._at(path).open()


def find_files(source: Source) -> list[ListFile]:
    """Return the list's files, sorted by name.

    The source's path is a file, a folder (not recursive) or a glob; names that begin with `.` or `_` are left out.

    Raises:
        ConfigError: there is no file, the filesystem's package is missing, or it cannot be reached.
    """
    where = f"sources.{source_name(source)}.path"
    scheme = _URL.match(source.path)
    if scheme is None:
        found = containers(source, SUFFIXES)
        return [_file(where, file.name, str(file.path), str(file.path.absolute())) for file in found]
    fs, root = _filesystem(source.path, scheme[1].lower(), where)
    try:
        fs.invalidate_cache()
        base, infos = _listed(fs, root)
        files = [_remote_file(where, fs, base, info) for info in infos]
    except CapfiltError:
        raise
    except FileNotFoundError as error:
        why = f", or it cannot be reached ({words(error.__cause__)})" if error.__cause__ else ""
        raise ConfigError(f"{where}: {source.path}: there is no such file{why}") from error
    except Exception as error:  # a third-party filesystem may raise anything
        raise ConfigError(
            f"{where}: {source.path} cannot be listed ({words(error)}); look at the network, the path, and the "
            f"credentials that {type(fs).__name__} takes"
        ) from error
    if not files:
        raise ConfigError(f"{where}: {source.path} has no {_UNDERSTOOD} file")
    return sorted(files, key=lambda file: file.name)


def _filesystem(path: str, scheme: str, where: str) -> tuple[Any, str]:
    try:
        fs, root = url_to_fs(path)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        advice = f"{package}: pip install 'capfilt[{EXTRAS[package]}]'" if package else f"a package ({error})"
        raise ConfigError(f"{where}: {path}: {scheme}:// needs {advice}") from error
    except Exception as error:
        raise ConfigError(
            f"{where}: {path}: {words(error)}; give a path of this machine, or s3://, gs://, https://, hf://"
        ) from error
    return fs, root


def _listed(fs: Any, root: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the prefix that names are relative to, and fsspec's information on each file."""
    plain = _without_query(root)
    wild = _MAGIC.search(plain, len("https://") if plain.startswith(_WEB) else 0)
    if wild is not None:
        base, infos = plain[: plain.rfind("/", 0, wild.start()) + 1], list(fs.glob(root, detail=True).values())
    elif not root.endswith("/") and (info := fs.info(root))["type"] != "directory":
        return plain[: plain.rfind("/") + 1], [info]
    else:
        base, infos = root.rstrip("/") + "/", fs.ls(root, detail=True)
    names = [(_without_query(info["name"]).rsplit("/", 1)[-1], info) for info in infos if info["type"] != "directory"]
    return base, [info for name, info in names if name and name[0] not in "._" and name.lower().endswith(SUFFIXES)]


def _without_query(path: str) -> str:
    return urlsplit(path)._replace(query="", fragment="").geturl() if path.startswith(_WEB) else path


def _remote_file(where: str, fs: Any, base: str, info: dict[str, Any]) -> ListFile:
    path = info["name"]
    info = info if info.get("size") is not None else fs.info(path)
    name = key_text(_without_query(path)[len(base) :])
    size = info["size"] if info.get("size") is not None else -1
    state = next((str(info[key]) for key in _STATES if info.get(key)), None) or str(fs.ukey(path))
    return _file(where, name, _without_query(fs.unstrip_protocol(path)), path, fs, (name, size, state))


def _file(where: str, name: str, label: str, path: str, fs: Any = None, facts: tuple[str | int, ...] = ()) -> ListFile:
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ConfigError(f"{where}: {label} is not a list that capfilt reads; give {_UNDERSTOOD}")
    if fs is None and path != key_text(path):
        raise ConfigError(f"{where}: {name}: the file's name is not UTF-8; rename the file")
    _, kind, *packed = suffix.split(".")
    kind = "json" if kind in ("jsonl", "ndjson") else kind
    return ListFile(name, label, kind, _PACKED["".join(f".{part}" for part in packed)], path, fs, facts)


@contextmanager
def reading(file: ListFile) -> Iterator[None]:
    """Turn errors of DuckDB, Arrow, a filesystem or the system into a DataError that names the file."""
    try:
        yield
    except CapfiltError:
        raise
    except duckdb.Error as error:
        raise DataError(_duckdb_error(file, str(error))) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise RunError(f"{file.label}: no room on the disk for a copy of it; free some and run again") from error
        if file.fs is None and not isinstance(error, OSError | pa.ArrowException | ValueError):
            raise
        advice = "fetch or write it again" if file.fs is None else _NETWORK
        raise DataError(f"{file.label}: cannot be read ({words(error)}); {advice}") from error


def _duckdb_error(file: ListFile, error: str) -> str:
    """DuckDB's message about a file, with the line number if it has one."""
    line = re.search(r"CSV Error on Line: (\d+)", error)
    first = error.split("\n", 1)[0].replace(file.path, file.name)
    if first.startswith("Traceback"):  # raised inside `Remote`
        return f"{file.label}: cannot be read ({error.strip().splitlines()[-1]}); {_NETWORK}"
    if line is None:
        return f"{file.label}: {first}; fix the file, or fetch or write it again"
    why = re.search(r"Expected Number of Columns.*|Value with unterminated quote|Maximum line size[^.]*", error)
    return (
        f"{file.label}: line {line[1]}: {why[0] if why else first}; fix or remove that line (a field with a delimiter, "
        'a line end or quotes must be in "", quotes in it doubled), or write the list as Parquet'
    )


def words(error: BaseException) -> str:
    """The first line of an error's message, or its class name."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
