"""Versions of Python and of the packages that decide a run's bytes."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "transformers", "pyarrow", "pillow", "imagehash", "faiss-cpu", "ray", "numpy")
"""Whose versions a run writes down: other versions may give other bytes."""


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a run's bytes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
