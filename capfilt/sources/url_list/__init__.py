"""Lists of URLs, as LAION, DataComp, CC3M/CC12M or SBU publish them, turned into one local snapshot by DuckDB."""

from capfilt.sources.url_list.snapshot import LIST, UrlList

__all__ = ["LIST", "UrlList"]
