"""Load single modules of img2dataset, and call its `download_image`, without changing the process.

img2dataset's `__init__` imports all of its modules, and with them torch, albumentations and pandas: 2 s and 200 MB per
worker. Its `download_image` calls `urllib.request.urlopen`, so an opener could only be given by installing it for the
whole process. Both are avoided here.
"""

import importlib
import importlib.util
import os
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

from capfilt.errors import ConfigError

PACKAGE = "img2dataset"
_NO_UPDATE_CHECK = "NO_ALBUMENTATIONS_UPDATE"
_lock = threading.Lock()

DownloadImage = Callable[[tuple[int, str], float, str | None, None], tuple[int, BytesIO | None, str | None]]
"""(key, url), timeout, user agent token, directives -> key, body or None, error or None."""


@cache
def load_img2dataset(module: str) -> Any:
    """Import one module of img2dataset (downloader, resizer) without the package's `__init__`.

    `sys.modules` and the environment are afterwards as they were, but for packages that the module itself imports.

    Raises:
        ConfigError: img2dataset or a package that it needs is not installed.
    """
    try:
        with _lock, _without_init(), _environment(_NO_UPDATE_CHECK, "1"):
            return importlib.import_module(f"{PACKAGE}.{module}")
    except ImportError as error:
        raise ConfigError(
            f"sources of type urls need img2dataset ({error}): pip install 'capfilt[urls]' -c constraints.txt"
        ) from error


@contextmanager
def _without_init() -> Iterator[None]:
    """Put an empty package in place of img2dataset until the block ends, unless it is already imported."""
    spec = None if PACKAGE in sys.modules else importlib.util.find_spec(PACKAGE)
    if spec is None:
        yield
        return
    empty = ModuleType(PACKAGE)
    empty.__path__ = list(spec.submodule_search_locations or [])
    sys.modules[PACKAGE] = empty
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable until the block ends, if it is not set. (albumentations' import asks the network for updates.)"""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


def download_with(opener: Any) -> DownloadImage:
    """Return img2dataset's `download_image` with `opener.open` in place of `urllib.request.urlopen`.

    The function is a copy with global names of its own: neither the module nor urllib is changed.

    Raises:
        ConfigError: img2dataset is not installed, or its function does not call `urllib.request.urlopen` itself.
    """
    original = load_img2dataset("downloader").download_image
    if not {"urllib", "request", "urlopen", "Request"} <= set(original.__code__.co_names):
        raise ConfigError("this version of img2dataset downloads in another way; install the one in constraints.txt")
    request = SimpleNamespace(
        Request=urllib.request.Request, urlopen=lambda asked, timeout=None: opener.open(asked, None, timeout)
    )
    names = {**original.__globals__, "urllib": SimpleNamespace(request=request)}
    return FunctionType(original.__code__, names, original.__name__)
