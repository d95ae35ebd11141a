"""Download the images of a list of URLs with img2dataset's `download_image` in threads, in the order of the list.

img2dataset's own `Downloader` is not used (measured, 1.47): its rows come in the order in which downloads end, an error
of the disk is swallowed as the row's error, refused URLs are requested again, and a killed shard leaves truncated
files. Instead its function for one image and its `Resizer` are called here, through an opener that checks addresses,
limits sizes, retries and reports reasons (`capfilt.download.opener`). Finished bodies wait in a `BodyBuffer` on disk.
"""

import threading
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from capfilt.config.source import Download
from capfilt.download.body_buffer import BodyBuffer, Place
from capfilt.download.img2dataset import download_with
from capfilt.download.opener import Opener, Outcome
from capfilt.download.result import FetchResult


class Fetcher:
    """Downloads for one source in this process. What it learns about hosts is kept from one shard to the next."""

    def __init__(self, rules: Download, folder: Path) -> None:
        """Create the opener; nothing is requested.

        Args:
            rules: limits and politeness.
            folder: on the run's disk, for bodies that wait for their turn.

        Raises:
            ConfigError: img2dataset is not installed, or a list of hosts cannot be used.
        """
        self._rules, self._folder = rules, folder
        self._stopped = threading.Event()
        self._opener = Opener(rules, folder=folder, sleep=self._pause)
        self._download_image = download_with(self._opener)

    def fetch(self, urls: Sequence[str]) -> Generator[FetchResult, None, None]:
        """Yield one result per URL, in order. All are downloaded at once, as far as threads and hosts allow.

        A URL that occurs several times is requested once.

        Raises:
            OSError: the disk is full, or this machine is out of file descriptors.
        """
        self._stopped.clear()
        self._folder.mkdir(parents=True, exist_ok=True)
        with BodyBuffer(self._folder) as buffer, ThreadPoolExecutor(self._rules.threads) as pool:
            left = Counter(urls)
            running = {url: pool.submit(self._download, url, buffer) for url in left}
            try:
                for url in urls:
                    left[url] -= 1
                    outcome, place = running[url].result() if left[url] else running.pop(url).result()
                    image = None if place is None else buffer.take(place, last=not left[url])
                    yield _result(url, outcome, image)
            finally:
                self._stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _download(self, url: str, buffer: BodyBuffer) -> tuple[Outcome, Place | bytes | None]:
        before = self._opener.last()
        _, stream, error = self._download_image((0, url), self._rules.timeout, None, None)
        outcome = self._opener.last()
        if outcome is before:  # urllib refused the URL before it called the opener
            return Outcome(url, "url_refused", str(error)), None
        if outcome.local_error is not None:
            raise outcome.local_error
        if stream is None:
            return outcome, None
        body = stream.getvalue()
        try:
            return outcome, buffer.put(body)
        finally:
            self._opener.release(len(body))

    def _pause(self, seconds: float) -> None:
        """Wait between tries. Raises InterruptedError as soon as nobody waits for the result any more."""
        if self._stopped.wait(seconds):
            raise InterruptedError("the run was stopped")


def _result(url: str, outcome: Outcome, image: bytes | None) -> FetchResult:
    notes = {"url": outcome.url, "x_robots_tag": outcome.x_robots_tag, "robots_txt": outcome.robots_txt}
    known = {name: note for name, note in notes.items() if note is not None and note != url}
    return FetchResult(image, outcome.reason, outcome.message, known)
