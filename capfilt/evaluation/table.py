"""Format the result of an evaluation for the terminal: metric, value, 95 % interval."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

Result = Mapping[str, Any]

_MATCHING = {
    "itc_auc": "ROC AUC, ITC",
    "itm_auc": "ROC AUC, ITM",
    "itc_ap": "average precision, ITC",
    "itm_ap": "average precision, ITM",
    "kept_matched": "kept at P >= 0.5, matched",
    "kept_mismatched": "kept at P >= 0.5, mismatched",
    "ece": "expected calibration error",
}


def render(result: Result) -> Group:
    """Return all tables of a result of `evaluate_judge` or `evaluate_captioner`."""
    tables = [captioner_table(result), examples_table(result)] if "cider" in result else _judge_tables(result)
    return Group(*tables, _footer(result))


def judge_table(result: Result) -> Table:
    """Return the table of retrieval: recalls as fractions and median ranks, by ITC and re-ranked by ITM."""
    table = Table("", "metric", "ITC", "95 %", f"ITM, top {result['rerank_k']}", "95 %", title="Retrieval")
    _align(table, 2)
    for way, name in (("t2i", "text to image"), ("i2t", "image to text")):
        for at in (1, 5, 10):
            key = f"{way}_r{at}"
            cells = [cell for full in (key, f"{key}_itm") for cell in (_number(result[full]), _interval(result, full))]
            table.add_row(name, f"R@{at}", *cells)
        ranks = (f"{result[f'{way}_median_rank{suffix}']:g}" for suffix in ("", "_itm"))
        table.add_row(name, "median rank", *(cell for rank in ranks for cell in (rank, "")), end_section=True)
    return table


def matching_table(result: Result) -> Table:
    """Return the table of AUC, average precision, the filter's decision and calibration error."""
    table = Table("metric", "value", "95 %", title="Matched against mismatched texts")
    _align(table, 1)
    for key, name in _MATCHING.items():
        table.add_row(name, _number(result[key]), _interval(result, key))
    return table


def reliability_table(result: Result) -> Table:
    """Return the table of predicted P(match) and observed share of matches, one row per bin."""
    table = Table("P(match)", "pairs", "predicted", "observed", title="Calibration of ITM (half of the pairs match)")
    _align(table, 1)
    for row in result["reliability"]:
        numbers = (_number(row["predicted"]), _number(row["observed"]))
        table.add_row(f"{row['low']:.1f} - {row['high']:.1f}", str(row["count"]), *numbers)
    return table


def captioner_table(result: Result) -> Table:
    """Return the table of the captioner and the two baselines; its caption has the diversity and length."""
    table = Table("", "CIDEr", "95 %", "BLEU-4", title="Captions")
    _align(table, 1)
    for suffix, name in (("", "captioner"), ("_nearest", "nearest training image"), ("_constant", "constant caption")):
        cider, bleu = f"cider{suffix}", f"bleu4{suffix}"
        table.add_row(name, _number(result[cider]), _interval(result, cider), _number(result[bleu]))
    table.caption = (
        f"distinct-1 {_number(result['distinct1'])}, distinct-2 {_number(result['distinct2'])}, "
        f"mean length {result['mean_length']:.1f} words"
    )
    return table


def examples_table(result: Result) -> Table:
    """Return a table of a few captions with the first true text and the nearest training image's text."""
    table = Table("caption", "true text", "nearest training text", title="Examples")
    for example in result["examples"]:
        cells = (example["caption"], example["references"][0], example["nearest"])
        table.add_row(*(Text(cell) for cell in cells), end_section=True)  # Text: [brackets] in a caption are not markup
    return table


def _judge_tables(result: Result) -> list[Table]:
    return [judge_table(result), matching_table(result), reliability_table(result)]


def _footer(result: Result) -> Text:
    lines = [f"{result['n']} images; seed {result['seed']}"]
    if result["skipped_images"] or result["skipped_texts"]:
        lines.append(f"left out: {result['skipped_images']} images, {result['skipped_texts']} empty texts")
    return Text("\n".join([*lines, *result["skipped"]]))


def _align(table: Table, first: int) -> None:
    for column in table.columns[first:]:
        column.justify = "right"
        column.no_wrap = True


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(result: Result, key: str) -> str:
    low, high = result.get(f"{key}_ci", (None, None))
    return "" if low is None else f"{_number(low)} - {_number(high)}"
