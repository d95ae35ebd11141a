"""The commands on pipelines and runs: all except `train` and `eval`."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from capfilt.cli.parsing import add_command, positive
from capfilt.cli.plan import show_plan
from capfilt.cli.summary import print_loop_summary, print_run_summary

_RUN = """
Run a pipeline: image-text pairs in, a captioned and filtered data set out.

The same command continues a run that was stopped. PIPELINE is a YAML file, or the name of a shipped pipeline (demo,
coco_style, bootstrap, rescore, laion_subset, datacomp_small). Paths in it are relative to the file; those given by
--set and --out are relative to the current directory.
"""
_RUN_EPILOG = """
examples:
  capfilt run demo
  capfilt run my.yaml --out runs/mine --set score.model=tiny/filter --set sources.0.path=my/pairs
  RAY_ADDRESS=ray://head:10001 capfilt run my.yaml

exit code: 0 done; 2 repair the pipeline or its data; 3 the machine cannot continue (disk full); 4 done, but rows that
killed their worker were quarantined; 130 interrupted
"""
_PLAN = """
Show what `capfilt run` would do, without doing it.

For every stage: whether it is done, else why it would run and about how long it takes. Finds mistakes in the YAML file
and lists what is missing on this machine (network, GPU, packages). Exit code 2 if something is.
"""
_SELECT = "Apply new thresholds to the stored scores and write the data set again; no model runs."
_SELECT_EPILOG = "example:\n  capfilt select runs/demo --set select.itm_threshold=0.7"
_RETRY = """
Download again the images that failed for a temporary reason (time-outs, 429, 5xx, broken connections).

The rows keep their place and their uid. Captions and scores of shards in which nothing changed are kept.
"""
_RETRY_EPILOG = "example:\n  capfilt retry runs/laion_subset"
_INSPECT = """
Show the history of one row, or sample texts of every verdict.

The history of a row: its texts, captions, scores, duplicates and verdicts.
"""
_INSPECT_EPILOG = "examples:\n  capfilt inspect runs/demo\n  capfilt inspect runs/demo 0123456789abcdef"
_SQL = "Query a run with SQL (DuckDB); views: pairs, captions, scores, duplicates, candidates, dataset."
_SQL_EPILOG = 'example:\n  capfilt sql runs/demo "select origin, kept, count(*) from candidates group by all"'
_REPORT = "Write the report of a run as one HTML file that needs no network."
_VERIFY = """
Check that a run's folder is complete and undamaged.

Compares the hashes of its files, the uids of its rows and the sum of all rows. Exit code 1 if something is wrong.
"""
_SCHEMA = "Print the JSON Schema of a pipeline file, for editors."
_COMPARE = """
Compare two runs: settings that differ, texts kept, reasons, verdicts on the same texts, metrics.

For a run with several rounds its last round is taken; RUN/round-1 names one of them.
"""
_COMPARE_EPILOG = "example:\n  capfilt compare runs/bootstrap/round-1 runs/bootstrap/round-2"
_DOCTOR = "Check whether this machine is ready: packages, CPUs and GPUs, disk space, shipped models."


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
        print(f"{args.run_folder}: nothing to retry: every image was downloaded, or failed for a permanent reason")
        return 0
    print_run_summary(result)
    return 4 if result.poisoned else 0


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

    problems = verify(args.run_folder)
    print("\n".join(problems) if problems else f"{args.run_folder}: complete; every file is as it was written")
    return 1 if problems else 0


def _schema(args: argparse.Namespace) -> None:
    from capfilt.config.pipeline import Pipeline

    print(json.dumps(Pipeline.model_json_schema(), indent=2))


def _doctor(args: argparse.Namespace) -> None:
    from capfilt.cli.doctor import examine, render

    Console().print(render(examine(Path("runs"))))


def add_commands(commands: Any) -> None:
    """Add the commands of pipelines and runs; `commands`: what `add_subparsers` returned."""
    _add_writing(commands)
    _add_reading(commands)
    _folder(add_command(commands, "verify", _verify, description=_VERIFY))
    example = "example:\n  capfilt schema > pipeline.schema.json"
    add_command(commands, "schema", _schema, description=_SCHEMA, epilog=example)
    add_command(commands, "doctor", _doctor, description=_DOCTOR)


def _add_writing(commands: Any) -> None:
    """Add the commands that write a run, and `plan`."""
    run = add_command(commands, "run", _run, description=_RUN, epilog=_RUN_EPILOG)
    _pipeline(run)
    _local(run)

    plan = add_command(commands, "plan", show_plan, description=_PLAN)
    _pipeline(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")

    select = add_command(commands, "select", _select, description=_SELECT, epilog=_SELECT_EPILOG)
    _folder(select)
    _set(select)

    retry = add_command(commands, "retry", _retry, description=_RETRY, epilog=_RETRY_EPILOG)
    _folder(retry)
    _set(retry)
    _local(retry)


def _add_reading(commands: Any) -> None:
    """Add the commands that read a run."""
    inspect = add_command(commands, "inspect", _inspect, description=_INSPECT, epilog=_INSPECT_EPILOG)
    _folder(inspect)
    inspect.add_argument("uid", nargs="?", metavar="UID", help="of a row, 16 hex digits (default: show samples)")
    inspect.add_argument("-n", type=positive, default=3, help="samples per verdict and origin (default: 3)")
    inspect.add_argument("--json", action="store_true", help="print the history as JSON")

    sql = add_command(commands, "sql", _sql, description=_SQL, epilog=_SQL_EPILOG)
    _folder(sql)
    sql.add_argument("query", metavar="QUERY", help="a SELECT statement")
    sql.add_argument("--json", action="store_true", help="print the rows as a JSON list of objects")

    report = add_command(commands, "report", _report, description=_REPORT)
    _folder(report)
    report.add_argument("--out", help="file to write (default: RUN/report.html)")

    compare = add_command(commands, "compare", _compare, description=_COMPARE, epilog=_COMPARE_EPILOG)
    _folder(compare)
    compare.add_argument("other", metavar="RUN_B", help="folder of the second run")
    compare.add_argument("--json", action="store_true", help="print JSON")


def _pipeline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", metavar="PIPELINE", help="YAML file, or the name of a shipped pipeline")
    parser.add_argument("--out", help="folder of the run (default: the pipeline's base, else runs/<name>)")
    _set(parser)


def _set(parser: argparse.ArgumentParser) -> None:
    help_text = "set a key: select.itm_threshold=0.7, sources.0.path=x"
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help=help_text)


def _local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local", action="store_true", help="work in this process, without Ray")


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, such as runs/demo")
