"""The entries of a caption list in JSON, one at a time: BLIP's lists have up to 10 million.

A list is parsed as a stream, in 1 MiB of memory, and reading can start at the first byte of any entry. COCO's
annotations and the Karpathy split are objects of at most 300 MB: they are loaded whole and converted to such entries.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capfilt.errors import DataError
from capfilt.sources.base import SourceDamagedError

CHUNK = 2**20
ENTRY_BYTES = 4 * 2**20
"""Longest entry; a longer one is treated as damage."""
_GAP = re.compile(r"[\s,]*")


class JsonList:
    """Entries by place: the byte offset in a list, the number in a file that is loaded whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            head = file.read(CHUNK)
        self._start = len(head) - len(head.lstrip())
        self._loaded = None if head[self._start : self._start + 1] == b"[" else _load(path)

    def entries(self, place: int = 0) -> Iterator[tuple[int, object]]:
        """Yield (place, entry), starting with the entry at `place`. Raises SourceDamagedError where it is not JSON."""
        if self._loaded is None:
            yield from _stream(self._path, max(place, self._start + 1))
        else:
            yield from enumerate(self._loaded[place:], place)


def _stream(path: Path, place: int) -> Iterator[tuple[int, object]]:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    parse, text, at = json.JSONDecoder().raw_decode, "", 0
    with path.open("rb") as file:
        file.seek(place)
        while True:
            gap = _GAP.match(text, at)
            start = gap.end() if gap else at
            if text.startswith("]", start):
                return
            try:
                entry, end = parse(text, start)
            except RecursionError as error:
                raise SourceDamagedError(f"the entry at byte {place} is nested too deep") from error
            except ValueError as error:
                chunk = file.read(CHUNK)
                if not chunk or len(text) - start > ENTRY_BYTES:
                    what = "ends inside of its list" if not chunk else "is no JSON"
                    raise SourceDamagedError(f"from byte {place} on it {what} ({error})") from error
                text, at = text[at:] + decoder.decode(chunk), 0
                continue
            place += start - at
            yield place, entry
            place += len(text[start:end].encode("utf-8", "surrogateescape"))
            at = end


def _load(path: Path) -> list[object]:
    """Entries of an object: COCO (images, annotations) or Karpathy (images with sentences)."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
        images = [image for image in found["images"] if isinstance(image, dict)]
        return _coco(images, found["annotations"]) if "annotations" in found else [_karpathy(image) for image in images]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: neither a list of {{image, caption}}, nor COCO's {{images, annotations}}, nor a Karpathy split "
            f"({type(error).__name__}: {error})"
        ) from error


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> list[object]:
    texts: dict[object, list[object]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        texts[annotation["image_id"]].append(annotation["caption"])
    return [{"image": i["file_name"], "caption": texts[i["id"]], "url": i.get("coco_url")} for i in images]


def _karpathy(image: dict[str, Any]) -> dict[str, Any]:
    name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
    return {"image": name, "caption": [s["raw"] for s in image["sentences"]], "split": image.get("split")}
