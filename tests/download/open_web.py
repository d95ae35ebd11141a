"""A small web: the bundled sample's images on a server that misbehaves for a stated share, and a list that names them.

`python -m tests.download.open_web [ROWS]` runs `laion_subset` on it by the real command line, and prints its end.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capfilt.media.images import ImageError, examine
from tests.download.server import HostileServer

SAMPLE = Path(__file__).parents[2] / "data/sample/web"
EVERY = 120
"""Rows in which each misbehaviour occurs as often as stated."""
WEB: list[tuple[int, str | None, dict[str, Any], str | None]] = [
    # rows of 120, what the server does, with which options, the row's reason (None: it comes)
    (6, "status", {"code": 404}, "http_404"),
    (4, "status", {"code": 403}, "http_403"),
    (5, "flaky", {"code": 500, "times": 1}, None),
    (2, "flaky", {"code": 429, "times": 1, "retry_after": 1}, None),
    (2, "flaky", {"code": 429, "times": 9, "retry_after": 3600}, "http_429"),
    (4, "flaky", {"code": 503, "times": 2}, "http_503"),
    (2, "drip_body", {}, "timeout"),
    (1, "drip_header", {}, "timeout"),
    (2, "endless", {}, "too_many_bytes"),
    (2, "huge", {}, "too_many_bytes"),
    (2, "longer", {}, "incomplete"),
    (3, "shorter", {}, "hash_mismatch"),
    (4, "redirect", {"n": 3}, None),
    (2, "redirect", {"n": 4}, "redirects"),
    (1, "to", {"url": "http://169.254.169.254/latest"}, "address_refused"),
    (3, "html", {}, "image_unreadable"),
    (2, "gzip", {}, "content_encoding"),
    (3, "truncated", {}, "image_unreadable"),
    (4, "changed", {}, "hash_mismatch"),
    (3, "tag", {"tag": "noai, noimageai"}, "opt_out"),
    (2, "tag", {"tag": "otherbot: noindex"}, None),
    (1, "reset", {}, "connection"),
]
ODD = [(None, "url_missing"), ("file:///etc/passwd", "url_refused"), ("http://10.0.0.1/cat.jpg", "address_refused")]
"""URLs that no server sees, each once in 120 rows."""
HEALS = ("http_503",)
"""What is well again when `capfilt retry` asks."""


class OpenWeb:
    """At most `rows` rows of the list pass the filter, as many again do not."""

    def __init__(self, folder: Path, rows: int) -> None:
        found = (row for file in sorted(SAMPLE.glob("*.parquet")) for row in pq.read_table(file).to_pylist())
        self.rows = list(islice((row for row in found if _whole(row)), rows))
        bodies = {f"/{i}.jpg": row["image"]["bytes"] for i, row in enumerate(self.rows)}
        self.server, self.list = HostileServer(bodies, pause=0.02), folder / "list.parquet"
        self.reasons: Counter[str | None] = Counter()
        """What becomes of the rows at the door; None: the image comes."""

    def __enter__(self) -> "OpenWeb":
        self.server.__enter__()
        good = [self._row(i, *deed) for i, deed in zip(range(len(self.rows)), self._deeds(), strict=False)]
        bad = [{**row, "uid": f"{i:032x}", "punsafe": 0.9} for i, row in enumerate(good, len(good))]
        pq.write_table(pa.Table.from_pylist([row for pair in zip(good, bad, strict=True) for row in pair]), self.list)
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.__exit__(*error)

    def _deeds(self) -> Iterator[tuple[str | None, dict[str, Any], str | None, str | None]]:
        """(do, options, reason, odd URL), spread over the rows so that those of a kind are apart; without end."""
        deeds: list[Any] = [(do, options, reason, "") for n, do, options, reason in WEB for _ in range(n)]
        deeds += [("", {}, reason, url) for url, reason in ODD]
        deeds += [(None, {}, None, "")] * (EVERY - len(deeds))
        while True:
            yield from (deeds[i * 49 % EVERY] for i in range(EVERY))

    def _row(self, i: int, do: str | None, options: dict[str, Any], reason: str | None, odd: str | None) -> Any:
        self.reasons[reason] += 1
        url = self.server.url(f"/{i}.jpg", do=do or "", **options) if odd == "" else odd
        image = self.rows[i]["image"]["bytes"]
        stated = hashlib.sha256(image).hexdigest() if do in ("changed", "shorter", None) else None
        told = {"uid": f"{i:032x}", "URL": url, "TEXT": self.rows[i]["text"], "sha256": stated, "nothing": None}
        return told | {"punsafe": 0.1, "pwatermark": 0.2, "similarity": 0.3 + i / 1e5, "LANGUAGE": "en"}

    def settings(self, captioner: str = "tiny/captioner", judge: str = "tiny/filter") -> list[str]:
        """Of `laion_subset`, for this web and this machine."""
        download = ("timeout=1", "retries=1", "backoff=0.05", "max_wait=5", "max_bytes=4000000", "per_host=64")
        found = {"sources.0.path": self.list, "sources.0.download.allow_hosts": "['127.0.0.1']", "resources": "{}"}
        for stage, model in (("caption", captioner), ("score", judge)):
            found |= {f"{stage}.model": model, f"{stage}.revision": "null", f"{stage}.device": "cpu"}
        found |= {"ingest.min_side": 16, "ingest.max_aspect": 20, "ingest.rows_per_shard": 50}
        return [*(f"{key}={value}" for key, value in found.items()), *(f"sources.0.download.{x}" for x in download)]


def _whole(row: dict[str, Any]) -> bool:
    """A few rows of the sample are broken on purpose."""
    try:
        return bool(row["text"]) and bool(examine((row["image"] or {}).get("bytes") or b""))
    except ImageError:
        return False


def main() -> None:
    """The run that docs/urls.md shows."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 885
    with tempfile.TemporaryDirectory() as folder, OpenWeb(Path(folder), rows) as web:
        line = ["capfilt", "run", "laion_subset", "--out", f"{folder}/run", *(f"--set={x}" for x in web.settings())]
        subprocess.run(line, check=True)
        subprocess.run(["capfilt", "retry", f"{folder}/run"], check=True)


if __name__ == "__main__":
    main()
