"""A source in a pipeline file: where pairs come from and, for a list of URLs, how images are downloaded."""

from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from capfilt.config.yaml_file import ConfigModel

Role = Literal["web", "human"]
SourceType = Literal["parquet", "folder", "webdataset", "img2dataset", "datasets", "blip_json", "urls"]


class Download(ConfigModel):
    """How the images of a `urls` source are downloaded. Limits are per process (one `ingest` actor)."""

    threads: int = Field(default=64, ge=1, le=1024)
    """Downloads at the same time."""
    per_host: int = Field(default=8, ge=1)
    """Concurrent requests to one host."""
    timeout: float = Field(default=20.0, gt=0)
    """Seconds for one try, from connecting to the last byte, redirects included."""
    retries: int = Field(default=2, ge=0, le=10)
    """Further tries after temporary errors: 408, 425, 429, 5xx, time-out, broken connection. Never after a refusal."""
    backoff: float = Field(default=1.0, ge=0)
    """Seconds before the second try; doubled before each further one. A Retry-After of the server replaces it."""
    max_wait: float = Field(default=30.0, ge=0)
    """Longest Retry-After to wait for, in seconds; after a longer one the row is left to `capfilt retry`."""
    max_bytes: int = Field(default=20 * 2**20, ge=1)
    """Largest body; a larger one is not read to its end, reason `too_many_bytes`."""
    max_redirects: int = Field(default=3, ge=0, le=20)
    """Most redirects that are followed for one URL; reason `redirects`."""
    allow_hosts: list[str] = Field(default=[])
    """`host` or `host:port` that may be private or on a port other than 80 and 443. All other hosts must be public."""
    contact: str | None = Field(default=None, max_length=200, pattern=r"^[\x20-\x7e]+$")
    """A web page or mail address, sent to every server in the User-Agent: whom to ask to stop."""
    x_robots_tag: bool = True
    """Respect noai, noimageai, noml, noindex and none in X-Robots-Tag; reason `opt_out`."""
    robots_txt: bool = False
    """Check each host's robots.txt first; reason `robots_txt`."""
    require_hash: bool = False
    """Do not download rows without sha256 or md5 in the list; reason `hash_missing`."""
    block_hosts: str | None = None
    """File with one host per line; the host and its subdomains are not contacted, reason `blocked_host`."""
    resize: Literal["keep", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep"
    """keep: the bytes as downloaded. The others are img2dataset's modes, re-encoded as JPEG of quality 95."""
    image_size: int = Field(default=384, ge=16)
    """Size in pixels for `resize`."""
    max_error_rate: float = Field(default=0.9, gt=0, le=1)
    """A larger share of failed rows stops the run, with advice. Checked after 200 rows and after each shard."""


NON_FINGERPRINT = (
    "threads", "per_host", "timeout", "retries", "backoff", "max_wait", "contact", "block_hosts", "max_error_rate",
)  # fmt: skip
"""Keys of `download` that may change between two calls of a run, because they do not change the bytes if the servers
answer the same. (block_hosts applies to the requests made from then on.)"""

_URLS_ONLY = ("filter", "rows", "seed", "download")
"""Keys that only a source of type `urls` may set."""


class Source(ConfigModel):
    """Where pairs come from. Rows have a fixed order: files by name, rows in file order."""

    type: SourceType
    """Format of the files."""
    path: str
    """File, folder or glob, depending on the type; for `urls` also s3://, gs://, https://, hf://."""
    name: str = ""
    """Part of every uid, so unique among the sources; by default the path's last component without its suffix."""
    role: Role = "web"
    """web: texts are scored and filtered, images captioned. human: kept unchanged, neither captioned nor filtered."""
    columns: dict[Literal["image", "text", "url", "key"], str] = Field(default={})
    """Column names where the usual ones (docs/sources.md) do not fit. text: "" means that there is no text column."""
    image_root: str | None = None
    """blip_json: folder that the list's image paths are relative to; the list's own folder by default."""
    filter: str | None = None
    """urls: a DuckDB expression over the list's own columns: `punsafe < 0.5 and LANGUAGE = 'en'`."""
    rows: int | None = Field(default=None, ge=1)
    """urls: number of rows drawn by `seed` from those that pass the filter; all by default."""
    seed: int = 0
    """urls: chooses the rows that `rows` draws."""
    download: Download = Download()

    @model_validator(mode="after")
    def _check(self) -> "Source":
        fields = type(self).model_fields
        given = [key for key in _URLS_ONLY if getattr(self, key) != fields[key].default]
        if given and self.type != "urls":
            raise ValueError(f"{', '.join(given)}: only for sources of type urls, not {self.type}")
        return self

    def fingerprint_fields(self) -> dict[str, Any]:
        """Return the settings that determine the rows and their bytes, JSON-able: no paths, no NON_FINGERPRINT keys."""
        excluded = {"path", "image_root"} | (set() if self.type == "urls" else set(_URLS_ONLY))
        fields = self.model_dump(mode="json", exclude=excluded)
        if "download" in fields:
            fields["download"] = {k: value for k, value in fields["download"].items() if k not in NON_FINGERPRINT}
        return fields


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str: ...


def source_name(source: _Named) -> str:
    """Return the stated name, or the path's last component without its suffix."""
    return source.name or Path(source.path).stem
