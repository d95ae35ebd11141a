"""What `capfilt run`, `select` and `retry` print at the end: where every row went, paths, and what to do next."""

from pathlib import Path
from typing import Any

from rich.console import Console


def print_run_summary(result: Any) -> None:
    """Print the funnel, the verdicts on labelled texts, the policy, paths, and what to do next."""
    from capfilt.selection.funnel import funnel

    console, run = Console(), result.layout.run
    console.print(funnel(result.accounting))
    if result.truth:
        console.print(result.truth["sentence"])
    _print_policy(result.layout)
    shown = _shortened(run)
    print(f"dataset  {shown / 'dataset'}\nreport   {shown / 'report.html'}\ntook     {result.seconds:.1f} s")
    print(f"next     capfilt inspect {shown}\n         capfilt select {shown} --set select.itm_threshold=0.7")
    print(f"         python -c \"from datasets import load_dataset; print(load_dataset('{shown / 'dataset'}'))\"")


def _print_policy(layout: Any) -> None:
    """Print the policy in one sentence and, if it is calibrated, the threshold that was found."""
    from capfilt.selection.calibration import read_calibration
    from capfilt.selection.policies import policy_of

    select, found = layout.pipeline.select, read_calibration(layout)
    print(policy_of(select).describe(select))
    if found is not None:
        print(found.sentence)


def _shortened(path: Path) -> Path:
    """Shorten a path to one relative to the current folder, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def print_loop_summary(rounds: list[Any]) -> None:
    """Print the last round's funnel, a comparison of the rounds, paths, and what to do next."""
    from capfilt.rounds.summary import table
    from capfilt.selection.funnel import funnel

    console, last = Console(), rounds[-1]
    console.print(funnel(last.result.accounting))
    console.print(table(rounds))
    _print_policy(last.result.layout)
    run = _shortened(last.result.layout.run.parent)
    models = run / last.result.layout.run.name / "models"
    print(f"dataset  {_shortened(last.result.dataset)}\nmodels   {models}\nreport   {run / 'report.html'}")
    print(f"next     capfilt inspect {_shortened(last.result.layout.run)}")
    use = f"--set caption.model={models / 'captioner'} --set score.model={models / 'filter'}"
    print(f"         capfilt run my.yaml {use}")
