"""Readers of image-text pairs: one per input format, all of which yield the same kind of row."""

from collections.abc import Callable
from pathlib import Path

from capfilt.config.pipeline import IngestSettings
from capfilt.config.source import Source, SourceType
from capfilt.media.blocklist import BlockList
from capfilt.sources.base import RawRow, Reader, ReaderOptions
from capfilt.sources.blip_json import BlipJsonReader
from capfilt.sources.datasets_disk import DatasetsReader
from capfilt.sources.folder import FolderReader
from capfilt.sources.img2dataset import open_img2dataset
from capfilt.sources.parquet import ParquetReader
from capfilt.sources.urls import UrlsReader
from capfilt.sources.webdataset import WebDatasetReader

__all__ = ["RawRow", "Reader", "open_source"]

_Factory = Callable[[Source, ReaderOptions], Reader]


def _of_files(reader: Callable[[Source, int], Reader]) -> _Factory:
    """The factory of a reader of files, which needs no option but the largest image file in bytes."""
    return lambda source, options: reader(source, options.rules.max_bytes)


_READERS: dict[SourceType, _Factory] = {
    "parquet": _of_files(ParquetReader),
    "folder": _of_files(FolderReader),
    "webdataset": _of_files(WebDatasetReader),
    "img2dataset": _of_files(open_img2dataset),
    "datasets": _of_files(DatasetsReader),
    "blip_json": _of_files(BlipJsonReader),
    "urls": UrlsReader,
}
_RULES = IngestSettings()


def open_source(
    source: Source, rules: IngestSettings = _RULES, run: Path = Path(), block_list: BlockList | None = None
) -> Reader:
    """Create the reader for a source's type. Files are listed but not read.

    Args:
        source: as in the pipeline file.
        rules: an image file above `max_bytes` is not read; its row gets the reason `too_many_bytes`.
        run: folder of the run; a list of URLs is stored there.
        block_list: as already read from `rules.block_hashes`; a reader that needs it reads it itself if None.

    Raises:
        ConfigError: the source's path or image_root does not exist, or contains nothing of that type.
    """
    return _READERS[source.type](source, ReaderOptions(rules, run, block_list))
