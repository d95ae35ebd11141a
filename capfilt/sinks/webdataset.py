"""`webdataset/00000.tar`: a sample a kept pair, its members key.jpg (the file as it was), key.txt, key.json.

Two rules come from how `datasets` (5.2) opens tars. It takes the features from the first five samples: a suffix that
comes later reads as None, and a JSON key that is null there and a string later stops it. So every sample has the same
suffixes (the format's own if all images are of one, else `jpg`: readers tell formats by content, and the JSON has the
true one), and keys without a value are left out of the JSON.
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
        pictures: in the order of the rows.
        folder: of the data set; the tars go to its `webdataset`.
        formats: all that the pictures have.
        pairs: texts of all pictures.
        rows_per_file: the last tar may have fewer; without any pair there is one without samples.
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
    """Name and content of each member; the key is the uid, for a further text with its number: uid_1."""
    for number, text in enumerate(picture.texts):
        key = f"{picture.uid}_{number}" if number else picture.uid
        told = json.dumps(_history(picture, text), sort_keys=True, ensure_ascii=False)
        contents = ((suffix, picture.data), ("txt", text["text"].encode()), ("json", told.encode()))
        yield [(f"{key}.{ending}", content) for ending, content in contents]


def _history(picture: Picture, text: CandidateRow) -> CandidateRow:
    history = {name: getattr(picture, name) for name in _PICTURE}
    history |= {name: value for name, value in text.items() if name not in ("text", "kept", "reason")}
    return {name: value for name, value in history.items() if value is not None}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A regular file, mode 0644, of nobody and of no time."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))
