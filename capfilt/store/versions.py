"""Versions of Python and of the packages on which the bytes of a run depend."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "pyarrow", "pillow", "imagehash", "faiss-cpu", "ray", "numpy")
"""Packages whose versions run.json records: other versions may give other bytes."""


def versions() -> dict[str, str]:
    """Return name -> version of Python and of those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
