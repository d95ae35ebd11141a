"""`capfilt verify`: checks that a run's folder is complete and undamaged: hashes, uids, the sum of all rows."""

from collections.abc import Iterator
from pathlib import Path

from capfilt.errors import CapfiltError
from capfilt.selection.accounting import account
from capfilt.selection.calibration import calibration_file, compute_calibration, read_calibration
from capfilt.stages.catalog import tables
from capfilt.stages.emit import MARKER
from capfilt.store.layout import RunLayout
from capfilt.store.run_folder import open_run, read_json
from capfilt.store.schema import DATASET, PAIRS, ShardTable
from capfilt.store.shards import file_sha256, manifest, table


def verify(run: str | Path) -> list[str]:
    """Check a run's folder, or those of all rounds of a loop.

    Returns:
        One line per problem with the file and what to do; empty if nothing is wrong.

    Raises:
        DataError: the folder is no run.
    """
    loop = read_json(Path(run) / "loop.json")
    if loop is not None:
        return [line for one in loop["rounds"] for line in verify(Path(run) / f"round-{one['round']}")]
    layout = open_run(run).layout
    found = [line for table_ in tables(layout) for line in _shards(layout, table_)]
    found += [*_calibration(layout), *_dataset(layout)]
    if not found:
        try:
            account(layout)
        except CapfiltError as error:
            found.append(str(error))
    return found


def _shards(layout: RunLayout, kind: ShardTable) -> Iterator[str]:
    for index in range(len(layout.shards)):
        path, pairs = layout.shard(kind, index), layout.shard(PAIRS, index)
        try:
            facts = manifest(path)
            if not path.is_file():
                yield f"{path}: missing; `capfilt run` computes it again"
            elif file_sha256(path) != facts["sha256"]:
                yield f"{path}: changed since it was written; delete it, and `capfilt run` computes it again"
            elif kind.sidecar and _uids(path) != _uids(pairs):
                yield f"{path}: its uids are not those of {pairs} in the same order; delete it and run again"
        except CapfiltError as error:
            yield str(error)


def _uids(path: Path) -> list[str]:
    found: list[str] = table(path, ["uid"])["uid"].to_pylist()
    return found


def _calibration(layout: RunLayout) -> Iterator[str]:
    """Yield a line if the stored scores give another threshold than the stored one."""
    try:
        found = read_calibration(layout)
        if found is not None and found != compute_calibration(layout):
            yield f"{calibration_file(layout)}: the stored scores give another threshold; remove it and run again"
    except CapfiltError as error:
        yield str(error)


def _dataset(layout: RunLayout) -> Iterator[str]:
    written = (read_json(layout.run / MARKER) or {}).get("files")
    if written is None:
        yield f"{layout.run / 'dataset'}: not finished; `capfilt run` writes it"
        return
    root = layout.folder(DATASET)
    existing = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    for name, sha256 in written.items():
        if name not in existing:
            yield f"{root / name}: missing; `capfilt select {layout.run}` writes the dataset again"
        elif file_sha256(root / name) != sha256:
            yield f"{root / name}: changed since it was written; `capfilt select {layout.run}` writes the dataset again"
    for name in sorted(existing - set(written)):
        yield f"{root / name}: not written by capfilt; the next `emit` removes it"
