"""What capfilt takes for granted of img2dataset 1.47: a version that breaks this is not to be used."""

import inspect
import os
import urllib.request
from importlib.metadata import version
from io import BytesIO
from typing import Any

import pytest

from tests.download.conftest import BODY, Names
from tests.download.server import HostileServer

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for a newer version
downloader = pytest.importorskip("img2dataset.downloader")

from capfilt.config.source import Download  # noqa: E402
from capfilt.download.img2dataset import download_with  # noqa: E402
from capfilt.download.opener import Opener  # noqa: E402


class Recorder:
    """An opener that notes what it is asked, and then asks `inner` or fails."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner
        self.calls: list[tuple[Any, Any, Any]] = []

    def open(self, request: Any, data: Any = None, timeout: Any = None) -> Any:
        self.calls.append((request, data, timeout))
        if self.inner is None:
            raise RuntimeError("said the opener")
        return self.inner.open(request, data, timeout)


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("img2dataset").startswith("1.47.")
    names = list(inspect.signature(downloader.download_image).parameters)
    assert names == ["row", "timeout", "user_agent_token", "disallowed_header_directives"]


def test_everything_goes_through_the_given_opener() -> None:
    recorder = Recorder()
    download_image = download_with(recorder)
    assert download_image((7, "http://a.example/a.jpg"), 3, None, None) == (7, None, "said the opener")
    ((request, data, timeout),) = recorder.calls
    assert (type(request), request.full_url) == (urllib.request.Request, "http://a.example/a.jpg")
    assert (request.data, request.get_method(), data, timeout) == (None, "GET", None, 3)


def test_an_image_comes_as_bytes_and_an_error_as_text(server: HostileServer) -> None:
    opener = Opener(Download(timeout=2, retries=0, allow_hosts=["127.0.0.1"]), resolve=Names())
    download_image = download_with(Recorder(opener))
    key, stream, error = download_image((1, server.url("/a.jpg")), 3, None, None)
    assert (key, type(stream), error) == (1, BytesIO, None)
    assert stream.getvalue() == BODY
    assert opener.last().reason is None
    for url, told in (
        (server.url("/none"), "the server answered 404"),
        ("http://10.0.0.1/", "10.0.0.1 is at 10.0.0.1"),
    ):
        key, stream, error = download_image((2, url), 3, None, None)
        assert (key, stream) == (2, None)
        assert error.startswith(told)
        assert error == opener.last().message


@pytest.mark.parametrize("url", ["", "no scheme", "//a.example/a.jpg", None, 3])
def test_what_urllib_refuses_itself_never_asks(url: Any) -> None:
    recorder = Recorder()
    download_image = download_with(recorder)
    key, stream, error = download_image((3, url), 3, None, None)
    assert (key, stream, recorder.calls) == (3, None, [])
    assert isinstance(error, str)


def test_files_and_data_do_not_pass_by_the_opener() -> None:
    download_image = download_with(Opener(Download(retries=0), resolve=Names()))
    for url in ("file:///etc/passwd", "data:image/png;base64,AAAA", "ftp://a.example/a"):
        _, stream, error = download_image((4, url), 3, None, None)
        assert (stream, "not http:// or https://" in error) == (None, True)
