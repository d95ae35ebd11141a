"""`webdataset/00000.tar`: one sample per kept pair, with members key.jpg (the original file), key.txt and key.json.

`datasets` (5.2) takes the features of a tar from its first five samples: a suffix that appears later reads as None, and
a JSON key that is null first and a string later is an error. So every sample has the same suffixes (the format's own if
all images have the same format, else `jpg`: readers recognise formats by content, and the JSON has the true one), and
keys without a value are left out of the JSON.
"""

import json
import tarfile
from collections.abc import Collection, Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

from capfilt.sinks.base import EXTENSIONS, CandidateRow, Counts, Picture

_PICTURE = ("uid", "key", "url", "width", "height", "format", "sha256")


def write_webdataset(
    pictures: Iterable[Picture], folder: Path, formats: Collection[str], pairs: int, rows_per_file: int
) -> Counts:
    """Write all pairs into tars of `rows_per_file` samples, in the order of the rows.

    Args:
        pictures: the kept images, in row order.
        folder: the data set's folder; tars are written to its `webdataset`.
        formats: the image formats that occur, as in `Picture.format`.
        pairs: number of texts of all images.
        rows_per_file: the last tar may have fewer; without any pair one tar without samples is written.

    Returns:
        files, rows (samples), bytes (of all tars).
    """
    (folder / "webdataset").mkdir()
    suffix = EXTENSIONS[next(iter(formats))] if len(formats) == 1 else "jpg"
    samples = (sample for picture in pictures for sample in _samples(picture, suffix))
    files = max(1, -(-pairs // rows_per_file))
    for index in range(files):
        path = folder / "webdataset" / f"{index:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for members in islice(samples, rows_per_file):
                for name, content in members:
                    _add(tar, name, content)
    size = sum(path.stat().st_size for path in (folder / "webdataset").iterdir())
    return {"files": files, "rows": pairs, "bytes": size}


def _samples(picture: Picture, suffix: str) -> Iterator[list[tuple[str, bytes]]]:
    """Yield name and content of each member. The key is the uid; for further texts uid_1, uid_2, ..."""
    for number, text in enumerate(picture.texts):
        key = f"{picture.uid}_{number}" if number else picture.uid
        history = json.dumps(_history(picture, text), sort_keys=True, ensure_ascii=False)
        contents = ((suffix, picture.data), ("txt", text["text"].encode()), ("json", history.encode()))
        yield [(f"{key}.{ending}", content) for ending, content in contents]


def _history(picture: Picture, text: CandidateRow) -> CandidateRow:
    history = {name: getattr(picture, name) for name in _PICTURE}
    history |= {name: value for name, value in text.items() if name not in ("text", "kept", "reason")}
    return {name: value for name, value in history.items() if value is not None}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a regular file, mode 0644, without owner and time."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))
