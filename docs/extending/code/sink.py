"""Example of a sink: `csv/pairs.csv` with one line per kept text, and the images beside it."""

import csv
from collections.abc import Iterable
from pathlib import Path

from capfilt.sinks.base import Counts, Picture


def write_csv(pictures: Iterable[Picture], folder: Path) -> Counts:
    """Write the list and the images.

    Args:
        pictures: every kept image with its kept texts, in the order of the rows; read once, never held.
        folder: the data set's folder; the sink creates its own folder in it.

    Returns:
        What was written, by name; it goes into accounting.json and the card.
    """
    (folder / "csv/images").mkdir(parents=True)
    images = texts = 0
    with (folder / "csv/pairs.csv").open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "text", "origin", "itm"])
        for picture in pictures:
            (folder / "csv/images" / picture.file_name).write_bytes(picture.data)
            images += 1
            for text in picture.texts:
                lines.writerow([f"images/{picture.file_name}", text["text"], text["origin"], text["itm"]])
                texts += 1
    return {"images": images, "texts": texts}
