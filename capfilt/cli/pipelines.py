"""capfilt run, plan, select, retry, inspect, sql, report, compare, verify, schema, doctor."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from capfilt.cli.parsing import command, positive
from capfilt.cli.summary import print_loop_summary, print_run_summary

_RUN = """
Run a pipeline: raw pairs in, a filtered and captioned dataset out. The same command goes on with a run that stopped.

PIPELINE is a YAML file, or the name of one that ships (demo, coco_style, bootstrap, rescore, laion_subset,
datacomp_small). Paths in it are relative to the file; those of --set and --out to where the command runs.
"""
_RUN_AFTER = """
examples:
  capfilt run demo
  capfilt run my.yaml --out runs/mine --set score.model=tiny/filter --set sources.0.path=my/pairs
  RAY_ADDRESS=ray://head:10001 capfilt run my.yaml

exit code: 0 done, 2 something to mend in pipeline or data, 3 the machine cannot go on (disk full), 4 done, but rows
that killed their worker were quarantined, 130 interrupted
"""
_PLAN = "Say what `capfilt run` would do: what is done, and why the rest would run. Finds every mistake in the YAML."
_SELECT = "Decide again from stored scores and write the dataset again; no model runs."
_SELECT_AFTER = "example:\n  capfilt select runs/demo --set select.itm_threshold=0.7"
_RETRY = """
Ask again for images that did not come for a reason that may pass (time-outs, 429, 5xx, broken connections).

What comes is put in its row's place in new shards, uids unchanged; captions and scores of all other shards stay.
"""
_INSPECT = "The history of one row (texts, captions, scores, duplicates, verdicts), or samples by verdict."
_SQL = "Ask a run with DuckDB: views pairs, captions, scores, duplicates, candidates, dataset."
_SQL_AFTER = 'example:\n  capfilt sql runs/demo "select origin, kept, count(*) from candidates group by all"'
_REPORT = "Write the run's HTML report, one file without links."
_VERIFY = "Check a run's folder: file hashes, rows, uids, the sum of all rows. Exit code 1 if something is wrong."
_SCHEMA = "Print the JSON Schema of a pipeline file, for editors."
_COMPARE = """
Two runs side by side: settings that differ, texts kept, reasons, verdicts on the same texts, metrics.

The folder of a loop stands for its last round; RUN/round-1 is one of its rounds.
"""
_COMPARE_AFTER = "example:\n  capfilt compare runs/bootstrap/round-1 runs/bootstrap/round-2"
_DOCTOR = "Say what this machine has for a run, and what is missing."


def _run(args: argparse.Namespace) -> int:
    from capfilt.api import run
    from capfilt.config.load import load_pipeline

    pipeline, console = load_pipeline(args.pipeline, args.set), Console(stderr=True)
    if pipeline.trains:
        from capfilt.rounds.loop import run_rounds

        rounds = run_rounds(pipeline, args.out, local=args.local, console=console)
        print_loop_summary(rounds)
        return 4 if any(one.result.poisoned for one in rounds) else 0
    result = run(pipeline, out=args.out, local=args.local, console=console)
    print_run_summary(result)
    return 4 if result.poisoned else 0


def _select(args: argparse.Namespace) -> None:
    from capfilt.api import select

    print_run_summary(select(args.run_folder, args.set, console=Console(stderr=True)))


def _retry(args: argparse.Namespace) -> int:
    from capfilt.api import retry

    result = retry(args.run_folder, args.set, local=args.local, console=Console(stderr=True))
    if result is None:
        print(f"{args.run_folder}: nothing to ask again; every image came, or was refused for a reason that stays")
        return 0
    print_run_summary(result)
    return 4 if result.poisoned else 0


def _plan(args: argparse.Namespace) -> int:
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
            raise type(error)("\n".join([*_lacks(missing), str(error)])) from error
        raise
    if args.json:
        print(json.dumps({**found, "lacks": missing}, indent=2))
    else:
        Console().print(render(found))
        print("\n".join(_lacks(missing)))
    return 2 if missing else 0


def _plan_rounds(pipeline: Any, args: argparse.Namespace, missing: list[str]) -> int:
    from capfilt.engine.plan_view import render
    from capfilt.rounds.summary import describe, trainings_table

    found = describe(pipeline, args.out)
    if args.json:
        print(json.dumps({**found, "lacks": missing}, indent=2))
    else:
        Console().print(render(found["pairs"]))
        Console().print(trainings_table(found))
        print("\n".join(_lacks(missing)))
    return 2 if missing else 0


def _lacks(missing: list[str]) -> list[str]:
    return ["this machine lacks:", *(f"  {line}" for line in missing)] if missing else []


def _inspect(args: argparse.Namespace) -> None:
    from capfilt.analysis.history import history, render_history, samples
    from capfilt.analysis.sql import render
    from capfilt.store.run_folder import open_run

    layout = open_run(args.run_folder).layout
    if args.uid is None:
        Console().print(render(*samples(layout, args.n)))
    elif args.json:
        print(json.dumps(history(layout, args.uid), indent=2, ensure_ascii=False))
    else:
        Console().print(render_history(history(layout, args.uid)))


def _sql(args: argparse.Namespace) -> None:
    from capfilt.analysis.sql import plain, query, render
    from capfilt.store.run_folder import open_run

    columns, rows = query(open_run(args.run_folder).layout, args.query)
    if args.json:
        print(json.dumps([dict(zip(columns, map(plain, row), strict=True)) for row in rows], ensure_ascii=False))
    else:
        Console().print(render(columns, rows))


def _report(args: argparse.Namespace) -> None:
    from capfilt.analysis.report.rounds import write_loop_report
    from capfilt.api import report

    folder = Path(args.run_folder)
    loop = not args.out and (folder / "loop.json").is_file()
    print(f"report  {write_loop_report(folder) if loop else report(folder, args.out)}")


def _compare(args: argparse.Namespace) -> None:
    from capfilt.analysis.compare import compare, render

    found = compare(args.run_folder, args.other)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(render(found))


def _verify(args: argparse.Namespace) -> int:
    from capfilt.analysis.verify import verify

    wrong = verify(args.run_folder)
    print("\n".join(wrong) if wrong else f"{args.run_folder}: every file, row and uid is as it was written")
    return 1 if wrong else 0


def _schema(args: argparse.Namespace) -> None:
    from capfilt.config.pipeline import Pipeline

    print(json.dumps(Pipeline.model_json_schema(), indent=2))


def _doctor(args: argparse.Namespace) -> None:
    from capfilt.cli.doctor import examine, table

    Console().print(table(examine(Path("runs"))))


def add(commands: Any) -> None:
    """Put them on the command line."""
    run = command(commands, "run", _run, _RUN, _RUN_AFTER)
    _pipeline(run)
    _local(run)

    plan = command(commands, "plan", _plan, _PLAN, "")
    _pipeline(plan)
    plan.add_argument("--json", action="store_true", help="for programs")

    select = command(commands, "select", _select, _SELECT, _SELECT_AFTER)
    _folder(select)
    _set(select)

    retry = command(commands, "retry", _retry, _RETRY, "example:\n  capfilt retry runs/laion_subset")
    _folder(retry)
    _set(retry)
    _local(retry)

    inspect = command(commands, "inspect", _inspect, _INSPECT, "")
    _folder(inspect)
    inspect.add_argument("uid", nargs="?", metavar="UID", help="16 hex digits; without it, samples by verdict")
    inspect.add_argument("-n", type=positive, default=3, help="samples a verdict (default: 3)")
    inspect.add_argument("--json", action="store_true", help="the history as JSON")

    sql = command(commands, "sql", _sql, _SQL, _SQL_AFTER)
    _folder(sql)
    sql.add_argument("query", metavar="QUERY", help="a DuckDB select")
    sql.add_argument("--json", action="store_true", help="rows as a JSON list of objects")

    report = command(commands, "report", _report, _REPORT, "")
    _folder(report)
    report.add_argument("--out", help="file (default: RUN/report.html)")

    compare = command(commands, "compare", _compare, _COMPARE, _COMPARE_AFTER)
    _folder(compare)
    compare.add_argument("other", metavar="RUN_B", help="another one")
    compare.add_argument("--json", action="store_true", help="for programs")

    _folder(command(commands, "verify", _verify, _VERIFY, ""))
    command(commands, "schema", _schema, _SCHEMA, "example:\n  capfilt schema > pipeline.schema.json")
    command(commands, "doctor", _doctor, _DOCTOR, "")


def _pipeline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", metavar="PIPELINE", help="YAML file, or the name of a shipped pipeline")
    parser.add_argument("--out", help="the run's folder (default: runs/<name>)")
    _set(parser)


def _set(parser: argparse.ArgumentParser) -> None:
    told = "change a key: select.itm_threshold=0.7, sources.0.path=x"
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help=told)


def _local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local", action="store_true", help="in this process, without Ray")


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, such as runs/demo")
