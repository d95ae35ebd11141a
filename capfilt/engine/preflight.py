"""Preflight checks: what this machine is missing for a pipeline, found before anything starts.

Nothing is downloaded: host names are resolved, and files and caches are looked for.
"""

import importlib.util
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from capfilt.config.pipeline import ModelSettings, Pipeline
from capfilt.config.source import Source, source_name
from capfilt.models.hub import endpoint, is_here
from capfilt.sources.url_list.files import EXTRAS, PACKAGES
from capfilt.stages.catalog import STAGES

PUBLIC = "example.com"
"""A host name that every public resolver knows."""


def missing_requirements(pipeline: Pipeline) -> list[str]:
    """Return one line per missing thing (network, hub, GPU, package) with what to do; empty if nothing is missing."""
    lines = [line for i, source in enumerate(pipeline.sources) if source.type == "urls" for line in _source(i, source)]
    for key, use in _models(pipeline):
        lines += _model(key, use)
    return [*lines, *_gpus(pipeline)]


def _source(index: int, source: Source) -> Iterator[str]:
    name = f"sources.{source_name(source)}"
    if importlib.util.find_spec("img2dataset") is None:
        yield f"img2dataset: {name} downloads with it; pip install 'capfilt[urls]' -c constraints.txt"
    scheme, host = urlsplit(source.path).scheme, urlsplit(source.path).hostname
    package = PACKAGES.get(scheme)
    if package and importlib.util.find_spec(package) is None:
        yield f"{package}: {name}.path is a {scheme}:// address; pip install 'capfilt[{EXTRAS[package]}]'"
    host = endpoint() if scheme == "hf" else host if scheme in ("http", "https") else None
    if host is None and not source.download.allow_hosts and not resolves(PUBLIC):
        yield f"network: {name} downloads from public hosts, and this machine cannot resolve {PUBLIC}"
    if host and not resolves(host):
        yield f"network: {host} of {name}.path cannot be resolved; copy the list here: --set sources.{index}.path=FILE"


def _models(pipeline: Pipeline) -> list[tuple[str, ModelSettings]]:
    """Return the stages that load a model, with its settings."""
    found = [(stage.spec.name, stage.spec.model(pipeline)) for stage in STAGES]
    return [(name, use) for name, use in found if use is not None]


def _model(key: str, use: ModelSettings) -> Iterator[str]:
    if not is_here(use.model, use.revision) and not resolves(endpoint()):
        yield (
            f"hub: {key}.model {use.model} is not in the cache and {endpoint()} cannot be resolved; give its folder: "
            f"--set {key}.model=FOLDER"
        )


def _gpus(pipeline: Pipeline) -> Iterator[str]:
    """Check this machine's GPUs; those of a cluster at RAY_ADDRESS are not known before it is asked."""
    if os.environ.get("RAY_ADDRESS"):
        return
    import torch

    count = torch.cuda.device_count()
    for stage, need in pipeline.resources.items():
        if need.num_gpus > count:
            yield (
                f"GPU: resources.{stage} asks for {need.num_gpus:g}, this machine has {count}; set RAY_ADDRESS to a "
                f"cluster with GPUs, or --set resources={{}} to run on CPU"
            )
    for key, use in _models(pipeline):
        if use.device == "cuda" and not count:
            yield f"GPU: {key}.device is cuda; --set {key}.device=cpu runs it on the CPU, slowly"


def resolves(host: str) -> bool:
    """Return whether this machine can resolve a host name."""
    try:
        return bool(socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM))
    except OSError:
        return False
