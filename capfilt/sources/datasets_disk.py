"""A folder written by `datasets.save_to_disk`: Arrow stream files, memory-mapped and read by pyarrow.

`datasets` is not imported and no script runs. Buffers are validated before use, because an offset in a damaged or
hostile file may point outside. A DatasetDict is read if it has a single split, or one named `train`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from capfilt.config.source import source_name
from capfilt.errors import ConfigError, DataError
from capfilt.sources.base import SourceDamagedError
from capfilt.sources.columns import ColumnRoles, find_roles
from capfilt.sources.files import Container, reading
from capfilt.sources.tables import BATCH, OpenTable, RecordGroup, TableReader, as_bytes, find_columns, unreadable
from capfilt.store.parquet import is_list, refuse_extension


class DatasetsReader(TableReader):
    """See `Reader`."""

    def _list(self) -> list[Container]:
        folder = self._folder()
        state = _json(folder / "state.json")
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(f"{folder}: saved with indices into other data; call flatten_indices() and save it again")
        listed = state.get("_data_files")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) and "filename" in entry for entry in listed):
            raise DataError(f"{folder / 'state.json'}: lists no data files; save the dataset again")
        names = [str(entry["filename"]) for entry in listed]
        if any(Path(name).name != name for name in names):
            raise DataError(f"{folder / 'state.json'}: names files outside its folder")
        return [Container(name, name, folder / name) for name in names]

    def _folder(self) -> Path:
        folder, where = Path(self.source.path), f"sources.{source_name(self.source)}.path"
        if (folder / "dataset_dict.json").is_file():
            splits = _json(folder / "dataset_dict.json").get("splits")
            known = [str(split) for split in splits] if isinstance(splits, list) else []
            split = known[0] if len(known) == 1 else "train"
            if split not in known or Path(split).name != split:
                raise ConfigError(f"{where}: {folder} has the splits {', '.join(known)}; give the folder of one")
            folder = folder / split
        if not (folder / "state.json").is_file():
            raise ConfigError(f"{where}: {folder} is not a folder of datasets.save_to_disk (it has no state.json)")
        return folder

    @contextmanager
    def open(self, file: Container) -> Iterator[OpenTable]:
        with reading(file.path), pa.memory_map(str(file.path)) as mapped:
            try:
                stream = pa.ipc.open_stream(mapped)
            except (pa.ArrowException, ValueError) as error:
                yield OpenTable(find_roles(()), [unreadable(f"{file.path}: no Arrow stream ({error})")])
                return
            for field in stream.schema:
                refuse_extension(file.path, field.name, field)
            columns = find_columns(self.source, file, stream.schema)
            yield OpenTable(columns, list(_groups(stream, columns)))


def _groups(stream: pa.RecordBatchReader, columns: ColumnRoles) -> Iterator[RecordGroup]:
    """Yield one group per batch: a view of the mapped file that takes no memory until it is read."""
    while True:
        try:
            batch = stream.read_next_batch().select(columns.names)
            rows = _rows(batch, columns)
        except StopIteration:
            return
        except (pa.ArrowException, ValueError, OSError) as error:
            yield unreadable(f"cut or damaged ({str(error).strip()})")
            return
        yield RecordGroup(batch.num_rows, rows, partial(_slices, batch))


def _rows(batch: pa.RecordBatch, columns: ColumnRoles) -> int:
    if columns.text is None or not is_list(batch.schema.field(columns.text).type):
        return int(batch.num_rows)
    lengths = pc.fill_null(pc.list_value_length(as_bytes(batch.column(columns.text))), 0)
    return int(pc.sum(pc.max_element_wise(lengths, 1)).as_py() or 0)


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    try:
        batch.validate()
    except pa.ArrowException as error:
        raise SourceDamagedError(f"a batch does not fit together ({error})") from error
    for start in range(0, batch.num_rows, BATCH):
        yield batch.slice(start, BATCH)


def _json(path: Path) -> dict[str, object]:
    with reading(path):
        text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error}); save the dataset again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object, found {type(found).__name__}; save the dataset again")
    return found
