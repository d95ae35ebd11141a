"""Images of a shard of URLs: fetched by img2dataset's `download_image` in threads, given back in the list's order.

Why not img2dataset's own `Downloader` (measured, 1.47): rows come in the order in which they end, an error of the disk
is swallowed as a row's, a refusal is asked again, a killed shard leaves truncated files. So its function for one image
and its `Resizer` are driven here, under an opener of ours: `urllib.request.urlopen` takes the installed one, which
guards, caps, retries and tells why (`capfilt.download.opener`). Bodies wait for their turn in a `Spool` on disk.
"""

import importlib.util
import os
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from capfilt.config.source import Download
from capfilt.download.body_buffer import Place, Spool
from capfilt.download.opener import Opener, Outcome
from capfilt.download.result import FetchResult
from capfilt.errors import ConfigError


class Fetcher:
    """Threads that fetch for one source in this process. What it learns of hosts serves all of its shards."""

    def __init__(self, rules: Download, folder: Path) -> None:
        """`folder`: on the run's disk, for bodies that wait. Raises ConfigError without img2dataset."""
        self._rules, self._folder = rules, folder
        self._stopped = threading.Event()
        self._opener = Opener(rules, folder=folder, sleep=self._pause)
        self._download_image = load_img2dataset("downloader").download_image

    def fetch(self, urls: Sequence[str]) -> Generator[FetchResult, None, None]:
        """One arrival a URL, in order; all are under way at once, as far as threads and hosts allow.

        An URL that occurs several times is asked once.
        Raises OSError where the disk cannot take the bodies.
        """
        self._stopped.clear()
        self._folder.mkdir(parents=True, exist_ok=True)
        with Spool(self._folder) as spool, installed(self._opener), ThreadPoolExecutor(self._rules.threads) as pool:
            left = Counter(urls)
            coming = {url: pool.submit(self._one, url, spool) for url in left}
            try:
                for url in urls:
                    left[url] -= 1
                    outcome, place = coming[url].result() if left[url] else coming.pop(url).result()
                    image = None if place is None else spool.take(place, last=not left[url])
                    yield _arrived(url, outcome, image)
            finally:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, url: str, spool: Spool) -> tuple[Outcome, Place | bytes | None]:
        before = self._opener.last()
        _, stream, error = self._download_image((0, url), self._rules.timeout, None, None)
        outcome = self._opener.last()
        if outcome is before:  # urllib refused the URL before it asked the opener
            return Outcome(url, "url_refused", str(error)), None
        if outcome.trouble is not None:
            raise outcome.trouble
        if stream is None:
            return outcome, None
        body = stream.getvalue()
        try:
            return outcome, spool.put(body)
        finally:
            self._opener.landed(len(body))

    def _pause(self, seconds: float) -> None:
        """Between tries; cut short when nobody waits for the result any more."""
        if self._stopped.wait(seconds):
            raise InterruptedError("the run was stopped")


def _arrived(url: str, outcome: Outcome, image: bytes | None) -> FetchResult:
    notes = {"url": outcome.url, "x_robots_tag": outcome.x_robots_tag, "robots_txt": outcome.robots_txt}
    told = {name: note for name, note in notes.items() if note is not None and note != url}
    return FetchResult(image, outcome.reason, outcome.told, told)


@contextmanager
def installed(opener: Any) -> Iterator[None]:
    """This process's `urllib.request.urlopen` goes through the opener for the time of the block."""
    before = urllib.request._opener  # type: ignore[attr-defined]
    urllib.request.install_opener(opener)
    try:
        yield
    finally:
        urllib.request.install_opener(before)


def load_img2dataset(module: str) -> Any:
    """One module of it (downloader, resizer), without its package's `__init__`.

    That would load all the others, and with them torch, albumentations and pandas: 2 s and 200 MB in every worker.
    Raises ConfigError where it is not installed.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version
    spec = importlib.util.find_spec("img2dataset") if "img2dataset" not in sys.modules else None
    if spec is not None:
        bare = sys.modules["img2dataset"] = ModuleType("img2dataset")
        bare.__path__ = list(spec.submodule_search_locations or [])
    try:
        return importlib.import_module(f"img2dataset.{module}")
    except ImportError as error:
        raise ConfigError(
            f"sources of type urls need img2dataset ({error}): pip install 'capfilt[urls]' -c constraints.txt"
        ) from error
    finally:
        if spec is not None:
            del sys.modules["img2dataset"]
