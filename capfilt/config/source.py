"""A source in a pipeline file: where pairs come from, and for a list of URLs how they are asked for."""

from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from capfilt.config.yaml_file import ConfigModel

Role = Literal["web", "human"]
SourceType = Literal["parquet", "folder", "webdataset", "img2dataset", "datasets", "blip_json", "urls"]


class Download(ConfigModel):
    """How the images of a `urls` source are fetched. Limits are of one process (one `ingest` actor)."""

    threads: int = Field(default=64, ge=1, le=1024)
    per_host: int = Field(default=8, ge=1)
    """Requests at once to one host."""
    timeout: float = Field(default=20.0, gt=0)
    """Seconds in all for one try: connect to last byte, redirects included."""
    retries: int = Field(default=2, ge=0, le=10)
    """Further tries after what may pass: 408, 425, 429, 5xx, time-outs, broken connections. Never after a refusal."""
    backoff: float = Field(default=1.0, ge=0)
    """Seconds before the second try; doubled before each further one. A Retry-After of the server counts instead."""
    max_wait: float = Field(default=30.0, ge=0)
    """Longest Retry-After that is waited for, seconds; a longer one leaves the row to `capfilt retry`."""
    max_bytes: int = Field(default=20 * 2**20, ge=1)
    """A larger body is not read to its end: `too_many_bytes`."""
    max_redirects: int = Field(default=3, ge=0, le=20)
    allow_hosts: list[str] = Field(default=[])
    """`host` or `host:port` that may be private or on another port than 80 and 443. Everything else must be public."""
    contact: str | None = Field(default=None, max_length=200, pattern=r"^[\x20-\x7e]+$")
    """A page or mail address, told to every server in the User-Agent: whom to ask to stop."""
    x_robots_tag: bool = True
    """Respect noai, noimageai, noml, noindex of the response: `opt_out`."""
    robots_txt: bool = False
    """Ask each host's robots.txt first: `robots_txt`."""
    require_hash: bool = False
    """Rows without sha256 or md5 in the list are not asked for: `hash_missing`."""
    block_hosts: str | None = None
    """File with one host a line; it and its subdomains are not asked: `blocked_host`."""
    resize: Literal["keep", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep"
    """keep: bytes as fetched. Else img2dataset's modes, re-encoded as JPEG of quality 95."""
    image_size: int = Field(default=384, ge=16)
    """Pixels, for `resize`."""
    max_error_rate: float = Field(default=0.9, gt=0, le=1)
    """A larger share of rows that do not come stops the run, with advice. Looked at after 200 rows and each shard."""


NON_FINGERPRINT = (
    "threads", "per_host", "timeout", "retries", "backoff", "max_wait", "contact", "block_hosts", "max_error_rate",
)  # fmt: skip
"""Settings that may change while a run goes on: for equal answers of the servers they change nothing (but block_hosts,
which holds for what is asked from then on)."""

_URLS_ONLY = ("filter", "rows", "seed", "download")
"""Keys that only a source of type `urls` may set."""


class Source(ConfigModel):
    """Where pairs come from. Rows are taken in a fixed order: files by name, rows as they lie in the file."""

    type: SourceType
    path: str
    """File, folder or glob, as the type has it; for `urls` also s3://, gs://, https://, hf://."""
    name: str = ""
    """Part of every uid; by default the path's last part without its suffix. Different in every source."""
    role: Role = "web"
    """web: its texts are judged and its images captioned. human: kept as they are, neither captioned nor filtered."""
    columns: dict[Literal["image", "text", "url", "key"], str] = Field(default={})
    """Column names where the usual ones (README, `Columns that are understood`) do not fit; text: "" says that there is
    none."""
    image_root: str | None = None
    """blip_json: folder that the list's image paths are relative to; the list's own folder by default."""
    filter: str | None = None
    """urls: a DuckDB expression over the list's own columns: `punsafe < 0.5 and LANGUAGE = 'en'`."""
    rows: int | None = Field(default=None, ge=1)
    """urls: so many rows of those that pass the filter, drawn by `seed`; all by default."""
    seed: int = 0
    download: Download = Download()

    @model_validator(mode="after")
    def _check(self) -> "Source":
        fields = type(self).model_fields
        given = [key for key in _URLS_ONLY if getattr(self, key) != fields[key].default]
        if given and self.type != "urls":
            raise ValueError(f"{', '.join(given)}: only of sources of type urls, not {self.type}")
        return self

    def fingerprint_fields(self) -> dict[str, Any]:
        """JSON-able settings that determine the rows and their bytes: not paths, nor the keys in NON_FINGERPRINT."""
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
    """The stated name, or the path's last part without its suffix."""
    return source.name or Path(source.path).stem
