"""Connecting to Ray: the one of this process, the one at RAY_ADDRESS, or a local one for the time of a run."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from capfilt.engine.steps import Plan
from capfilt.errors import RunError


@contextmanager
def cluster() -> Iterator[None]:
    """Use the Ray that this process is connected to, the one at RAY_ADDRESS, or start one and stop it at the end."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    # Nothing but paths goes through the object store: the smallest that Ray accepts starts fastest.
    local = {} if address else {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    # "local": without an address, Ray would join any cluster that `ray start` left on this machine.
    ray.init(
        address=address or "local", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **local
    )
    try:
        yield
    finally:
        ray.shutdown()


def check_capacity(plan: Plan) -> None:
    """Raise RunError if one worker asks for more than this machine has. A cluster at RAY_ADDRESS may grow: no check."""
    if os.environ.get("RAY_ADDRESS"):
        return
    has = ray.cluster_resources()
    for group in plan.groups:
        need, name = plan.resources(group), group.steps[0].name
        for kind, wanted in (("CPU", need.num_cpus), ("GPU", need.num_gpus)):
            if group.todo and wanted > has.get(kind, 0):
                raise RunError(
                    f"resources.{name}: an actor wants {wanted:g} {kind}s, this machine has {has.get(kind, 0):g}; "
                    "ask for less, or set RAY_ADDRESS to a cluster that has them"
                )
