"""Generate the reference tables of the site from the code, when mkdocs builds it.

A page asks for a table by a line `<!-- generated: NAME -->`; the names are the keys of `TABLES`. Settings come from the
pydantic models: types, ranges and defaults from their JSON Schema, meanings from the docstrings below the fields. So a
new key, column, reason or command is on the site without an edit.
"""

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from settings_tables import cell, settings_reference, settings_table

_MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page; mkdocs calls this for every page. Raises KeyError for an unknown table."""
    return _MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def columns_table(columns: tuple[Any, ...]) -> str:
    """Return a table of stored columns: name, Arrow type, meaning with unit and range."""
    rows = [f"| `{column.name}` | `{column.type}` | {cell(column.description)} |" for column in columns]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def _columns() -> str:
    """Return a section per stage that writes shards: what it does, its folder, its SQL view, its columns."""
    from capfilt.stages.catalog import STAGES

    found = []
    for stage in STAGES:
        table = stage.spec.table
        if table is not None:
            about = inspect.cleandoc(inspect.getmodule(stage).__doc__ or "").split("\n\n")[0]
            about = re.sub(rf"^{table.stage}: ", "", about, flags=re.IGNORECASE)
            place = f"Folder `{table.folder_name('<fp>')}`, SQL view `{table.view}`."
            found += [
                f"## {table.stage} {{ #{table.stage} }}",
                "",
                about[:1].upper() + about[1:],
                "",
                place,
                "",
                columns_table(tuple(table)),
                "",
            ]
    return "\n".join(found)


def _column_names() -> str:
    from capfilt.sources import columns

    roles = {
        "image": columns.IMAGE,
        "text": columns.TEXT,
        "URL": columns.URL,
        "key": columns.KEY,
        "kept as JSON in `meta`": columns.META,
    }
    rows = [f"| {role} | {', '.join(f'`{name}`' for name in names)} |" for role, names in roles.items()]
    return "\n".join(["| role | names |", "|---|---|", *rows])


def _reasons() -> str:
    from capfilt.selection.reasons import REASONS

    rows = [f"| `{reason}` | {cell(meaning)} |" for reason, meaning in REASONS.items()]
    return "\n".join(["| reason | meaning |", "|---|---|", *rows])


def _policies() -> str:
    """Return a table of the policies: the scores that each needs, and its own description with default settings."""
    from capfilt.config.pipeline import SelectSettings
    from capfilt.selection.policies import POLICIES

    rows = []
    for policy in POLICIES:
        select = SelectSettings(policy=policy.name)
        needs = ", ".join(policy.needs(select)) or "none"
        rows.append(f"| `{policy.name}` | {needs} | {cell(policy.describe(select))} |")
    return "\n".join(["| policy | scores | with the default settings |", "|---|---|---|", *rows])


def _cards() -> str:
    """Return a table of the model cards in `models/`, except those of tokenizers."""
    from capfilt.models.card import cards

    head = "| model | system | roles | scores | licence | pinned commit |"
    rows = [
        f"| `{name}` | {card.system} | {', '.join(card.roles)} | {', '.join(card.scores) or '-'} "
        f"| {card.licence or 'unknown'} | {f'`{card.revision[:7]}`' if card.revision else 'ships'} |"
        for name, card in cards().items()
        if card.roles
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def _card_keys() -> str:
    from capfilt.models.card import ModelCard

    return settings_table(ModelCard, ["card.yaml"]).replace("](#decoding)", "](reference/pipeline.md#decoding)")


def _commands() -> str:
    """Return the help of every command, as the terminal prints it."""
    from capfilt.cli.app import parser

    commands = next(one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    found = []
    for name, command in commands.choices.items():
        command.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=92)
        command.color = False
        shown = ["``` { .text .wrap }", command.format_help().strip(), "```"]
        found += [f"## capfilt {name} {{ #{name} }}", "", *shown, ""]
    return "\n".join(found)


def _errors() -> str:
    from capfilt import errors

    found = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.CapfiltError)]
    rows = [f"| `{one.__name__}` | {one.exit_code} | {cell((one.__doc__ or '').splitlines()[0])} |" for one in found]
    return "\n".join(["| class | exit code | when |", "|---|---|---|", *rows])


def _pipeline() -> str:
    from capfilt.config.pipeline import Pipeline

    return settings_reference(Pipeline)


def _recipe() -> str:
    from capfilt.training.objectives.registry import DEFAULT, find_objective

    return settings_reference(find_objective(DEFAULT).recipe_type)


def _recipe_kinds() -> str:
    from capfilt.training.objectives.registry import DEFAULT, find_objective

    kinds = find_objective(DEFAULT).kinds
    rows = [
        f"| `{section}.{key}` | " + " | ".join(_filled(kinds[kind], section, key) for kind in kinds) + " |"
        for section, key in dict.fromkeys((s, k) for kind in kinds.values() for s, part in kind.items() for k in part)
    ]
    return "\n".join([f"| key | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|", *rows])


def _filled(kind: Mapping[str, Mapping[str, object]], section: str, key: str) -> str:
    return f"`{json.dumps(kind[section][key])}`" if key in kind.get(section, {}) else ""


TABLES: dict[str, Callable[[], str]] = {
    "pipeline": _pipeline,
    "recipe": _recipe,
    "recipe-kinds": _recipe_kinds,
    "commands": _commands,
    "columns": _columns,
    "column-names": _column_names,
    "reasons": _reasons,
    "errors": _errors,
    "cards": _cards,
    "card-keys": _card_keys,
    "policies": _policies,
}
"""Name in a page's mark -> the Markdown that takes its place."""

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(TABLES[sys.argv[1]]())
