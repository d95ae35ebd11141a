"""Compare two runs: every column of every table, row by row. For changes to the code that must not change a value.

    python -m benchmarks.same_values runs/before runs/after --rename candidates.source=origin

Folders are matched by the part of their name before the fingerprint. Prints one line per table; exit code 1 if a value
differs, a column is missing on one side, or a table has other rows.
"""

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def tables(run: Path) -> dict[str, list[Path]]:
    """Return stage -> its shards in order; the emitted data set's files count as `dataset`."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*run.glob("*/*.parquet"), *run.glob("dataset/**/*.parquet")]):
        folder = path.relative_to(run).parts[0]
        found.setdefault(folder.split("-")[0] if folder != "dataset" else folder, []).append(path)
    return {name: sorted(set(paths)) for name, paths in found.items()}


def read(paths: list[Path], renamed: dict[str, str]) -> pa.Table:
    """Return the shards as one table, columns under their new names."""
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    return table.rename_columns([renamed.get(name, name) for name in table.column_names])


def differences(before: pa.Table, after: pa.Table) -> list[str]:
    """Return what differs, one entry per column."""
    found = [f"{name}: only in one" for name in sorted({*before.column_names} ^ {*after.column_names})]
    if before.num_rows != after.num_rows:
        return [*found, f"{before.num_rows} rows, then {after.num_rows}"]
    for name in before.column_names:
        if name in after.column_names and before[name].combine_chunks() != after[name].combine_chunks():
            rows = zip(before[name].to_pylist(), after[name].to_pylist(), strict=True)
            found.append(f"{name}: {sum(a != b for a, b in rows)} of {before.num_rows} values differ")
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--rename", action="append", default=[], metavar="TABLE.OLD=NEW", help="a column renamed in between"
    )
    args = parser.parse_args()
    renames = [(*key.split("."), new) for key, _, new in (entry.partition("=") for entry in args.rename)]
    before, after = tables(args.before), tables(args.after)
    wrong = sorted({*before} ^ {*after})
    for name in wrong:
        print(f"{name}: only in one run")
    for name in (name for name in before if name in after):
        renamed = {old: new for table, old, new in renames if table == name}
        one, other = read(before[name], renamed), read(after[name], {})
        found = differences(one, other)
        wrong += found
        shape = f"{one.num_rows} rows, {one.num_columns} columns in {len(before[name])} and {len(after[name])} files"
        print(f"{name}: {'; '.join(found) or 'equal'} ({shape})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
