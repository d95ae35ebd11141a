"""`blip_json/`: separate lists of web, synthetic and human texts, like the lists that BLIP released.

NAME_filtered.json, NAME_synthetic_filtered.json, NAME_human.json; entries {"image": "images/UID.jpg", "caption"} or
{"url", "caption"}. Entries are written one by one, so that a list of millions is never in memory.
"""

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

from capfilt.sinks.base import Counts, Picture

LISTS = {"web": "_filtered", "synthetic": "_synthetic_filtered", "human": "_human"}
"""Origin of a text -> what its list's name ends in."""


def write_blip_json(
    pictures: Iterable[Picture], folder: Path, name: str, link: Literal["image", "url"] = "image"
) -> Counts:
    """Write the three lists, and with `link="image"` also the images.

    Returns:
        Number of entries of each list; `without_url`: texts left out because their image has no url.
    """
    folder = folder / "blip_json"
    (folder / "images" if link == "image" else folder).mkdir(parents=True)
    counts: Counter[str] = Counter(dict.fromkeys((*LISTS, "without_url") if link == "url" else LISTS, 0))
    with ExitStack() as stack:
        lists = {
            origin: stack.enter_context(_List(folder / f"{name}{ending}.json")) for origin, ending in LISTS.items()
        }
        for picture in pictures:
            place = _place(picture, folder, link)
            for text in picture.texts:
                if place is None:
                    counts["without_url"] += 1
                else:
                    lists[text["origin"]].add({link: place, "caption": text["text"]})
                    counts[text["origin"]] += 1
    return dict(counts)


def _place(picture: Picture, folder: Path, link: Literal["image", "url"]) -> str | None:
    if link == "url":
        return picture.url
    place = f"images/{picture.file_name}"
    (folder / place).write_bytes(picture.data)
    return place


class _List:
    """A JSON list that is written entry by entry, one per line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._before = "\n"

    def __enter__(self) -> "_List":
        self._file.write("[")
        return self

    def add(self, entry: dict[str, str]) -> None:
        self._file.write(self._before + json.dumps(entry, ensure_ascii=False))
        self._before = ",\n"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.write("\n]\n")
        self._file.close()
