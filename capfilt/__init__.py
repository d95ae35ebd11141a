"""capfilt: CapFilt of BLIP, from noisy image-text pairs to a captioned and filtered data set.

from capfilt import Pipeline, load_pipeline, run, select, retry, open_run
result = run("demo", out="runs/demo")
result.accounting, result.dataset
"""

from typing import TYPE_CHECKING, Any

from capfilt.version import __version__

__all__ = ["Pipeline", "Result", "__version__", "load_pipeline", "open_run", "retry", "run", "select"]

if TYPE_CHECKING:
    from capfilt.api import Result, retry, run, select
    from capfilt.config.load import load_pipeline
    from capfilt.config.pipeline import Pipeline
    from capfilt.store.run_folder import open_run

_MODULES = {"Pipeline": "config.pipeline", "load_pipeline": "config.load", "open_run": "store.run_folder"}
"""Public name -> its module below `capfilt`; names that are missing here are in `capfilt.api`."""


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, so that `capfilt --help` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'capfilt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"capfilt.{_MODULES.get(name, 'api')}"), name)
