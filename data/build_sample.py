"""Build the bundled sample: a thousand real pictures with texts, small enough to ship and to run in minutes.

It takes clip-art under the titles that people gave it, emoji, and 14 photographs (`sample_pictures.py`), gives a
quarter of them another picture's text, adds exact and near duplicates and broken files, and says apart, in
truth.parquet, which row is what. The human-annotated part shares no picture and no concept with the rest. To run:

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    for deb in lomiri-*.deb; do dpkg-deb -x $deb lomiri; done
    python data/build_sample.py --clipart clipart.parquet --lomiri lomiri --out data/sample --rest data/clipart.parquet

clipart.parquet is what `build_clipart.py` writes. Equal seeds give equal bytes with one version of Pillow and pyarrow.
"""

import argparse
import hashlib
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sample_pictures import (
    Picture,
    clash,
    clipart_pictures,
    decode,
    distinct,
    encode,
    is_annotation,
    is_describable,
    photographs,
    retouch,
)

SEED, SAMPLE_MODULUS = 2201, 5
WEB = {"openclipart": 300, "fluent": 270, "noto": 240, "lomiri": 7}  # pictures, before duplicates and broken files
HUMAN = {"openclipart": 56, "fluent": 28, "noto": 28, "lomiri": 7}
MISMATCHED = 0.27  # of the pictures of each package: a quarter of the rows
COPIES, WEB_FILES, ROW_GROUP = 30, 3, 100  # exact and near duplicates, of each so many
BROKEN_FORMATS = ("JPEG", "PNG", "WEBP")
FORMATS = {"WEBP": 70, "JPEG": 16, "PNG": 13, "GIF": 1}  # weights
COLUMNS = ("key", "url", "image", "text", "licence", "credit")
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
FEATURES = {name: {"_type": "Image"} if name == "image" else {"dtype": "string", "_type": "Value"} for name in COLUMNS}
SCHEMA = pa.schema(
    {name: IMAGE if name == "image" else pa.string() for name in COLUMNS},
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)
TRUTH = pa.schema({"key": pa.string(), "matches": pa.bool_(), "kind": pa.string(), "of": pa.string()})


@dataclass(eq=False)
class Row:
    """A row of the sample with its truth: `data` None is no image at all, `of` the row that it borrows from."""

    picture: Picture
    text: str
    data: bytes | None
    suffix: str
    kind: str = "plain"
    matches: bool | None = True
    of: "Row | None" = None
    key: str = ""


def is_sample(image_id: str) -> bool:
    """Whether a picture of clipart.parquet may be in the sample: one of five, which training can leave out by rule."""
    return int(hashlib.sha256(image_id.encode()).hexdigest(), 16) % SAMPLE_MODULUS == 0


def choose(pictures: Iterable[Picture], sizes: dict[str, int], once: bool = False) -> list[Picture]:
    """The first pictures of each package, as many as `sizes` says; with `once`, no image_id twice."""
    chosen: list[Picture] = []
    used: Counter[str] = Counter()
    for picture in pictures:
        repeated = once and any(picture.image_id == other.image_id for other in chosen)
        if used[picture.package] < sizes[picture.package] and not repeated:
            used[picture.package] += 1
            chosen.append(picture)
    assert used == Counter(sizes), f"too few pictures: {used}"
    return chosen


def derange(rows: Sequence[Row], rng: random.Random) -> bool:
    """Give each of these rows another one's text that does not name its picture, each text once; False if in vain."""
    order = rng.sample(range(len(rows)), len(rows))

    def bad(i: int, j: int) -> bool:
        return clash(rows[i].picture.names, rows[j].picture.text)

    for i in range(len(rows)):
        if bad(i, order[i]):
            fits = [j for j in range(len(rows)) if not bad(i, order[j]) and not bad(j, order[i])]
            if not fits:
                return False
            j = rng.choice(fits)
            order[i], order[j] = order[j], order[i]
    for row, j in zip(rows, order, strict=True):
        row.text, row.of, row.kind, row.matches = rows[j].picture.text, rows[j], "mismatched", False
    return True


def to_row(picture: Picture, rng: random.Random) -> Row:
    """A plain row; photographs stay JPEG, others stay WebP or take another format."""
    kind = rng.choices(list(FORMATS), list(FORMATS.values()))[0]
    if picture.package == "lomiri":
        return Row(picture, picture.text, picture.data, "jpg")
    data = picture.data if kind == "WEBP" else encode(decode(picture.data), kind)
    return Row(picture, picture.text, data, kind.lower().replace("jpeg", "jpg"))


def duplicate(row: Row, kind: str, nth: int) -> Row:
    """A duplicate of a row's picture under its own text, or every other time under its short description."""
    assert row.data is not None
    text = row.picture.human if nth % 2 and row.picture.human else row.picture.text
    near = kind == "near_duplicate"
    data = retouch(row.data, nth % 4) if near else row.data
    return Row(row.picture, text, data, "webp" if near else row.suffix, kind, of=row)


def bomb(side: int = 60_000) -> bytes:
    """A PNG of about 70 bytes whose header claims `side` by `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(999))), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def broken_rows(pictures: Sequence[Picture], rng: random.Random) -> list[Row]:
    """One row for each way in which a file can be broken, with the texts of pictures that appear nowhere else."""
    jpeg, png, webp = (encode(decode(item.data), kind) for item, kind in zip(pictures, BROKEN_FORMATS, strict=False))
    files: list[tuple[bytes | None, str]] = [
        (jpeg[: len(jpeg) // 2], "jpg"),
        (png[: len(png) // 2], "png"),
        (webp[: len(webp) // 2], "webp"),
        (rng.randbytes(2000), "webp"),
        (b"", "jpg"),
        (b"<html><title>404 Not Found</title></html>\n", "png"),
        (bomb(), "png"),
        (None, ""),
    ]
    return [
        Row(picture, picture.text, data, suffix, "broken", None)
        for picture, (data, suffix) in zip(pictures[: len(files)], files, strict=True)
    ]


def split(
    pictures: Sequence[Picture], vocabulary: frozenset[str]
) -> tuple[list[Picture], list[Picture], list[Picture]]:
    """Web part, human part, and what is left over; the human part shares no concept and no description with others."""
    usable = [*distinct(picture for picture in pictures if is_describable(picture.text, vocabulary))]
    human = choose((picture for picture in usable if is_annotation(picture, vocabulary)), HUMAN, once=True)
    apart = {name for picture in human for name in (picture.image_id, (picture.human or "").lower())}
    usable = [item for item in usable if item.image_id not in apart and (item.human or "").lower() not in apart]
    web = choose(usable, WEB)
    taken = {picture.image_id for picture in web}
    return web, human, [picture for picture in usable if picture.image_id not in taken]


def web_rows(pictures: Sequence[Picture], spare: Sequence[Picture], rng: random.Random) -> list[Row]:
    """The web part in random order: pictures, a quarter of the texts exchanged, duplicates, broken files."""
    rows = [to_row(picture, rng) for picture in pictures]
    for package in WEB:
        mine = [row for row in rows if row.picture.package == package]
        while not derange(rng.sample(mine, round(MISMATCHED * len(mine))), rng):
            pass
    originals = rng.sample(rows, 2 * COPIES)
    kinds = ["exact_duplicate"] * COPIES + ["near_duplicate"] * COPIES
    copies = [duplicate(row, kind, nth) for nth, (row, kind) in enumerate(zip(originals, kinds, strict=True))]
    rows += copies + broken_rows(spare, rng)
    return rng.sample(rows, len(rows))


def number(rows: Sequence[Row]) -> None:
    """Give keys that count up in each package, whatever a row's kind."""
    used: Counter[str] = Counter()
    for row in rows:
        used[row.picture.package] += 1
        row.key = f"{row.picture.package}-{used[row.picture.package]:04d}"


def to_table(rows: Iterable[Row]) -> pa.Table:
    """The columns that the pipeline reads; a copy's `url` is that of the picture it was made from."""
    records = []
    for row in rows:
        image = None if row.data is None else {"bytes": row.data, "path": f"{row.key}.{row.suffix}"}
        values = (row.key, row.picture.url, image, row.text, row.picture.licence, row.picture.credit)
        records.append(dict(zip(COLUMNS, values, strict=True)))
    return pa.Table.from_pylist(records, schema=SCHEMA)


def write_sample(rows: list[Row], human: list[Row], out: Path) -> None:
    """Write both parts, the truth about the first, and the image_ids of clipart.parquet that are in them."""
    number([*rows, *human])
    size = -(-len(rows) // WEB_FILES)
    for part in range(WEB_FILES):
        write(to_table(rows[part * size :][:size]), out / "web" / f"{part:05d}.parquet")
    write(to_table(human), out / "human" / "00000.parquet")
    truth = ({"key": row.key, "matches": row.matches, "kind": row.kind, "of": row.of and row.of.key} for row in rows)
    write(pa.Table.from_pylist([*truth], schema=TRUTH), out / "truth.parquet")
    ids = {row.picture.image_id for row in rows + human if row.picture.package != "lomiri"}
    (out / "held_out.txt").write_text("".join(f"{name}\n" for name in sorted(ids)), encoding="utf-8")


def write(table: pa.Table, path: Path) -> None:
    """Write a Parquet file with page checksums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=ROW_GROUP, compression="zstd", write_page_checksum=True)


def main() -> None:
    """Build the files and print how many rows there are of each kind."""
    parser = argparse.ArgumentParser(description="Build the bundled sample.")
    parser.add_argument("--clipart", type=Path, required=True, help="the Parquet that build_clipart.py wrote")
    parser.add_argument("--lomiri", type=Path, required=True, help="where the Lomiri wallpapers lie unpacked")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, data/sample")
    parser.add_argument("--rest", type=Path, help="also write the clip-art that no sample is drawn from, for training")
    args = parser.parse_args()
    if args.rest:
        table = pq.read_table(args.clipart)
        outside = [not is_sample(image_id) for image_id in table["image_id"].to_pylist()]
        pq.write_table(table.filter(pa.array(outside)), args.rest, compression="zstd", row_group_size=256)
    clipart, vocabulary = clipart_pictures(args.clipart)
    eligible = [*(picture for picture in clipart if is_sample(picture.image_id)), *photographs(args.lomiri)]
    rng = random.Random(SEED)
    web, human, spare = split(rng.sample(eligible, len(eligible)), vocabulary)
    rows = web_rows(web, spare, rng)
    annotated = [
        Row(picture, picture.human or "", picture.data, "jpg" if picture.package == "lomiri" else "webp")
        for picture in rng.sample(human, len(human))
    ]
    write_sample(rows, annotated, args.out)
    print(*sorted(Counter(f"{row.picture.package} {row.kind}" for row in rows).items()), sep="\n")
    print(f"{args.out}: {len(rows)} web, {len(annotated)} human, {len(spare)} pictures spare")


if __name__ == "__main__":
    main()
