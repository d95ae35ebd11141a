"""`capfilt plan`: what a run would do, and what is missing on this machine."""

import argparse
import json
from typing import Any

from rich.console import Console


def show_plan(args: argparse.Namespace) -> int:
    """Print the plan of a pipeline. Return 2 if something is missing on this machine, else 0."""
    from capfilt.config.load import load_pipeline
    from capfilt.engine.plan import make_plan, out_of
    from capfilt.engine.plan_view import describe, render
    from capfilt.engine.preflight import missing_requirements
    from capfilt.errors import CapfiltError
    from capfilt.store.run_folder import RunFolder

    pipeline = load_pipeline(args.pipeline, args.set)
    missing = missing_requirements(pipeline)
    try:
        if pipeline.trains:
            return _plan_rounds(pipeline, args, missing)
        folder = RunFolder(out_of(pipeline, args.out))
        found = describe(make_plan(pipeline, folder), folder)
    except CapfiltError as error:
        if missing:
            raise type(error)("\n".join([*_missing_lines(missing), str(error)])) from error
        raise
    if args.json:
        print(json.dumps({**found, "missing": missing}, indent=2))
    else:
        Console().print(render(found))
        print("\n".join(_missing_lines(missing)))
    return 2 if missing else 0


def _plan_rounds(pipeline: Any, args: argparse.Namespace, missing: list[str]) -> int:
    from capfilt.engine.plan_view import render
    from capfilt.rounds.summary import describe, trainings_table

    found = describe(pipeline, args.out)
    if args.json:
        print(json.dumps({**found, "missing": missing}, indent=2))
    else:
        Console().print(render(found["pairs"]))
        Console().print(trainings_table(found))
        print("\n".join(_missing_lines(missing)))
    return 2 if missing else 0


def _missing_lines(missing: list[str]) -> list[str]:
    return ["missing on this machine:", *(f"  {line}" for line in missing)] if missing else []
