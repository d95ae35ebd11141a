"""capfilt: BLIP's CapFilt, open and complete: noisy image-text pairs in, a bootstrapped dataset out.

from capfilt import Pipeline, load_pipeline, run, select, retry, open_run
result = run("demo", out="runs/demo")
result.accounting, result.dataset
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Pipeline", "Result", "load_pipeline", "open_run", "retry", "run", "select"]

if TYPE_CHECKING:
    from capfilt.driver import Result, retry, run, select
    from capfilt.load import load_pipeline
    from capfilt.pipeline import Pipeline
    from capfilt.rundir import open_run

_HOMES = {"Pipeline": "pipeline", "load_pipeline": "load", "open_run": "rundir"}


def __getattr__(name: str) -> Any:
    """Loaded when first asked for: `capfilt --help` need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'capfilt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"capfilt.{_HOMES.get(name, 'driver')}"), name)
