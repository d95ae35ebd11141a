"""Where pairs come from: one reader a format, all giving the same rows."""

from collections.abc import Callable
from pathlib import Path

from capfilt.config.pipeline import IngestSettings
from capfilt.config.source import Source
from capfilt.sources.base import RawRow, Reader
from capfilt.sources.blip_json import BlipJsonReader
from capfilt.sources.datasets_disk import DatasetsReader
from capfilt.sources.folder import FolderReader
from capfilt.sources.img2dataset import open_img2dataset
from capfilt.sources.parquet import ParquetReader
from capfilt.sources.urls import UrlsReader
from capfilt.sources.webdataset import WebDatasetReader

__all__ = ["RawRow", "Reader", "open_source"]

_READERS: dict[str, Callable[[Source, int], Reader]] = {
    "parquet": ParquetReader,
    "folder": FolderReader,
    "webdataset": WebDatasetReader,
    "img2dataset": open_img2dataset,
    "datasets": DatasetsReader,
    "blip_json": BlipJsonReader,
}


_RULES = IngestSettings()


def open_source(source: Source, rules: IngestSettings = _RULES, run: Path = Path()) -> Reader:
    """The reader of a source's type. Files are listed, none is read.

    Args:
        source: as the pipeline file has it.
        rules: a larger image than `max_bytes` is not read; its row says `too_many_bytes`.
        run: the run's folder, where a list of URLs is kept.

    Raises:
        ConfigError: its path or image_root is not there, or holds nothing of that type.
    """
    if source.type == "urls":
        return UrlsReader(source, rules, run)
    return _READERS[source.type](source, rules.max_bytes)
