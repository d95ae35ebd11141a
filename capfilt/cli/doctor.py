"""`capfilt doctor`: checks packages, devices, disk space and shipped models of this machine."""

import importlib
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table

from capfilt.models.hub import shipped
from capfilt.store.versions import versions
from capfilt.version import __version__

_PACKAGES = {
    "torch": "torch", "transformers": "transformers", "datasets": "datasets", "pyarrow": "pyarrow", "ray": "ray",
    "faiss": "faiss-cpu", "PIL": "pillow", "imagehash": "imagehash", "duckdb": "duckdb", "jinja2": "jinja2",
}  # fmt: skip
"""Module -> name of its package."""
Check = tuple[str, str, str]
"""What was checked, what was found, and "ok" or what to do."""


def examine(folder: Path) -> list[Check]:
    """Check this machine; `folder` is where runs will be written."""
    checks: list[Check] = [("capfilt", __version__, "ok"), ("python", versions()["python"], "ok")]
    checks += [_package(module, name) for module, name in _PACKAGES.items()]
    checks += [_devices(), _ray(), _disk(folder)]
    return [*checks, ("shipped models", ", ".join(shipped()) or "none", "ok" if shipped() else "reinstall capfilt")]


def _package(module: str, name: str) -> Check:
    try:
        importlib.import_module(module)
        return name, version(name), "ok"
    except (ImportError, OSError, PackageNotFoundError) as error:
        return name, str(error).splitlines()[0], f"pip install {name} -c constraints.txt"


def _devices() -> Check:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0))
    advice = "ok" if gpus else "ok: no GPU; fine for the tiny models, slow for BLIP-base"
    return "devices", f"{cores} CPU cores; {', '.join(gpus) or 'no GPU'}", advice


def _ray() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    return "ray cluster", address or "RAY_ADDRESS is not set: a run starts a local cluster", "ok"


def _disk(folder: Path) -> Check:
    existing = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    return (
        "free disk",
        f"{free:.1f} GiB at {existing}",
        "ok" if free > 2 else "make room: a run stores images once or twice",
    )


def render(checks: list[Check]) -> Table:
    """Return the checks as a table for the terminal."""
    table = Table("checked", "found", "")
    for check in checks:
        table.add_row(*check)
    return table
