"""Loading and calling img2dataset leaves the process as it was."""

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from capfilt.download.img2dataset import download_with
from capfilt.errors import ConfigError

pytest.importorskip("exifread")

_STATE = """
import os, pathlib, sys, urllib.request
from capfilt.config.source import Download

def state():
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "img2dataset"}
    variable = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
    return variable, urllib.request._opener, urllib.request.urlopen, ours

before = state()
from capfilt.download.fetcher import Fetcher
from capfilt.download.resize import Resize
from capfilt.sources.urls import UrlsReader
assert state() == before
fetcher = Fetcher(Download(threads=2), pathlib.Path(sys.argv[1]))
results = fetcher.fetch(["ftp://a.example/a", "http://10.0.0.1/"])
assert next(results).reason == "url_refused" and state() == before  # while it downloads, too
assert [result.reason for result in results] == ["address_refused"]
assert state() == before
resize = Resize("border", 64)
import cv2
cv2.setNumThreads(3)
try:
    resize(b"no image", 10**6)
except Exception as error:
    assert type(error).__name__ == "ImageError"
png = cv2.imencode(".png", __import__("numpy").zeros((200, 300, 3), "uint8"))[1].tobytes()
assert resize(png, 10**6)[:2] == bytes([255, 216])
assert cv2.getNumThreads() == 3
assert state() == before
assert "torch" not in sys.modules
"""


def test_the_process_is_as_before(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _STATE, str(tmp_path)], check=True, timeout=120)


_MISSING = """
import os, pathlib, sys
sys.modules["exifread"] = None  # as if it were not installed
from capfilt.config.source import Download
from capfilt.download.fetcher import Fetcher
from capfilt.errors import ConfigError
before = dict(os.environ)
try:
    Fetcher(Download(), pathlib.Path(sys.argv[1]))
except ConfigError as error:
    assert "pip install 'capfilt[urls]'" in str(error), error
assert not [name for name in sys.modules if name.startswith("img2dataset")]
assert dict(os.environ) == before
"""


def test_an_import_that_fails_leaves_the_process_as_before(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _MISSING, str(tmp_path)], check=True, timeout=120)


def test_another_way_to_download_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type("module", (), {"download_image": staticmethod(lambda row, *_: row)})
    monkeypatch.setattr("capfilt.download.img2dataset.load_img2dataset", lambda _: module)
    with pytest.raises(ConfigError, match="downloads in another way"):
        download_with(urllib.request.build_opener())
