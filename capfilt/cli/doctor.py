"""`capfilt doctor`: what this machine has for a run, and what is missing."""

import importlib
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table

from capfilt.models.hub import shipped
from capfilt.store.versions import versions
from capfilt.version import __version__

_NEEDED = {
    "torch": "torch", "transformers": "transformers", "datasets": "datasets", "pyarrow": "pyarrow", "ray": "ray",
    "faiss": "faiss-cpu", "PIL": "pillow", "imagehash": "imagehash", "duckdb": "duckdb", "jinja2": "jinja2",
}  # fmt: skip


def examine(folder: Path) -> list[tuple[str, str, str]]:
    """(what, found, "ok" or what to do about it), one a line; `folder`: where runs will be written."""
    lines = [("capfilt", __version__, "ok"), ("python", versions()["python"], "ok")]
    lines += [_package(module, name) for module, name in _NEEDED.items()]
    lines += [_devices(), _ray(), _disk(folder)]
    return [*lines, ("models that ship", ", ".join(shipped()) or "none", "ok" if shipped() else "reinstall capfilt")]


def _package(module: str, name: str) -> tuple[str, str, str]:
    try:
        importlib.import_module(module)
        return name, version(name), "ok"
    except (ImportError, OSError, PackageNotFoundError) as error:
        return name, str(error).splitlines()[0], f"pip install {name} -c constraints.txt"


def _devices() -> tuple[str, str, str]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0))
    advice = "ok" if gpus else "ok: no GPU; fine for the tiny models, slow for BLIP-base"
    return "devices", f"{cores} CPU cores; {', '.join(gpus) or 'no GPU'}", advice


def _ray() -> tuple[str, str, str]:
    address = os.environ.get("RAY_ADDRESS")
    return "ray cluster", address or "none named: a run starts a local one", "ok"


def _disk(folder: Path) -> tuple[str, str, str]:
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    return "free disk", f"{free:.1f} GiB under {place}", "ok" if free > 2 else "a run keeps every image once or twice"


def table(lines: list[tuple[str, str, str]]) -> Table:
    """For the terminal."""
    shown = Table("what", "found", "")
    for line in lines:
        shown.add_row(*line)
    return shown
