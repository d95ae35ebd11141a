"""Build one Parquet of synthetic pictures with texts from three openly licensed packages.

Photographs teach little of drawings, so these add 3,400 pictures of Debian's `openclipart-svg` (public domain), 1,850
of npm's `@lobehub/fluent-emoji-3d` (MIT), 1,690 of npm's `@iconify-json/noto` (Apache-2.0). `web_text` is what they
say, noise and all ("arrow08_4, shape, arrow"); `human_text` a short clean English description, or null. To run:

    apt-get install librsvg2-bin && apt-get download openclipart-svg && dpkg-deb -x openclipart-svg_*.deb openclipart
    npm install --prefix npm @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/noto@1.2.9 emojibase-data@17.0.0
    python data/build_clipart.py --openclipart openclipart --fluent npm/node_modules/@lobehub/fluent-emoji-3d \\
        --noto npm/node_modules/@iconify-json/noto --emojibase npm/node_modules/emojibase-data --out clipart.parquet
"""

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageChops

RENDER_SIDE, SHORT_SIDE, MAX_SIDE, MIN_SIDE = 480, 160, 320, 40  # pixels
RENDER_TIMEOUT_S, THREADS = 10, 2
MAX_SHARED_TEXT = 8  # a text on more pictures describes none: "gramastar" names 1,375 polygons, "card" 226 cards
MIN_INK = 0.01  # the least part of the pixels that must differ visibly from the commonest colour
SKIN_TONE = re.compile(r"(^|-)1f3f[b-f](-|$)")
NOT_DESCRIPTIVE = re.compile(r"clip ?art|collection|theme|icon|svg|symbols|submission|template|example", re.I)
XMLNS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
Emoji = dict[str, list[str]]  # concept: label, then tags
COLUMNS = ["uid", "image", "web_text", "human_text", "kind", "width", "height", "licence", "source", "image_id"]
TYPES = dict.fromkeys(COLUMNS, pa.string()) | dict.fromkeys(("width", "height"), pa.int32())
FEATURES = {name: {"dtype": str(dtype), "_type": "Value"} for name, dtype in TYPES.items()}
TYPES["image"], FEATURES["image"] = pa.struct({"bytes": pa.binary(), "path": pa.string()}), {"_type": "Image"}
SCHEMA = pa.schema(TYPES, metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})})


@dataclass(frozen=True)
class Picture:
    """One picture of a package before rendering; `content` is SVG or webp, `concept` an emoji's code points."""

    package: str
    version: str
    key: str
    licence: str
    web_text: str
    human_text: str | None
    content: bytes
    concept: str | None = None

    @property
    def uid(self) -> str:
        """First 16 hex digits of sha256 over the package's name and the file's key."""
        return hashlib.sha256(f"{self.package}\n{self.key}".encode()).hexdigest()[:16]


class SkippedError(Exception):
    """A picture is left out; the message is the reason, and is counted."""


def parse_metadata(svg: bytes) -> tuple[str, str]:
    """Title and web text (title and keywords, or else description) of an SVG; `SkippedError` unless it may be used."""
    try:
        root = ET.fromstring(svg)
    except ET.ParseError as error:
        raise SkippedError("broken XML") from error
    empty = ET.Element("empty")
    work = next((node for node in root.iter() if node.tag.endswith("}Work")), empty)
    fields = {node.tag.rpartition("}")[2]: node for node in work}
    if "publicdomain" not in "".join(fields.get("license", empty).attrib.values()).lower():
        raise SkippedError("not declared public domain")
    items = [node for node in fields.get("subject", empty).iter() if node.tag.endswith("}li")]
    texts = [fields.get("title", empty), fields.get("description", empty), *items]
    title, description, *keywords = (" ".join((node.text or "").split()) for node in texts)
    web_text = ", ".join(filter(None, [title, *(keywords if any(keywords) else [description])]))
    if not web_text:
        raise SkippedError("no text")
    return title, web_text


def clean_title(title: str, vocabulary: frozenset[str]) -> str | None:
    """A title as a description, or None unless it is letters only and most of its words are in `vocabulary`."""
    text = " ".join(title.replace("_", " ").split())
    if not re.fullmatch(r"[A-Za-z][A-Za-z ,.'()&-]*", text) or NOT_DESCRIPTIVE.search(text):
        return None
    words = re.findall(r"[a-z]{3,}", text.lower())
    known = sum(word in vocabulary or word.removesuffix("s") in vocabulary for word in words)
    return text if 2 * known > len(words) else None


def concept_of(code: str) -> str:
    """The code point sequence that all drawings of one emoji share: "2764-FE0F" and "2764" are one."""
    return "-".join(part for part in re.split("[-_]", code.lower()) if part != "fe0f")


def read_emojibase(root: Path) -> tuple[Emoji, frozenset[str]]:
    """Label and tags of each emoji without skin tones, and the words of three letters or more in them."""
    entries = json.loads((root / "en" / "data.json").read_bytes())
    emoji = {concept_of(entry["hexcode"]): [entry["label"], *entry.get("tags", ())] for entry in entries}
    words = " ".join(text for texts in emoji.values() for text in texts).lower()
    return emoji, frozenset(re.findall(r"[a-z]{3,}", words))


def openclipart_pictures(root: Path, vocabulary: frozenset[str], skipped: Counter[str]) -> Iterator[Picture]:
    """Yield the public domain files of an unpacked `openclipart-svg` that have a title or keywords."""
    name, folder = "openclipart-svg", root / "usr/share/openclipart/svg"
    changelog = gzip.decompress(next(root.rglob("changelog.Debian.gz")).read_bytes()).decode()
    version = changelog.partition("(")[2].partition(")")[0]
    found: list[tuple[str, bytes, str, str]] = []
    for path in sorted(folder.rglob("*.svg")):
        try:
            if path.is_symlink():
                raise SkippedError("link to another file")
            content = path.read_bytes()
            found.append((path.relative_to(folder).as_posix(), content, *parse_metadata(content)))
        except SkippedError as reason:
            skipped[f"{name}: {reason}"] += 1
    titles = Counter(title for _, _, title, _ in found)
    for key, content, title, web_text in found:
        human = clean_title(title, vocabulary) if titles[title] <= MAX_SHARED_TEXT else None
        yield Picture(name, version, key, "public-domain", web_text, human, content)


def fluent_pictures(root: Path, emoji: Emoji, skipped: Counter[str]) -> Iterator[Picture]:
    """Yield the renders of `@lobehub/fluent-emoji-3d` that emojibase names; its tags play the web text."""
    package = json.loads((root / "package.json").read_bytes())
    name, version = package["name"], package["version"]
    for path in sorted((root / "assets").glob("*.webp")):
        concept = concept_of(path.stem)
        if concept in emoji:
            texts, content = emoji[concept], path.read_bytes()
            yield Picture(name, version, path.name, "MIT", ", ".join(texts), texts[0], content, concept)
        else:
            skipped[f"{name}: {'skin tone' if SKIN_TONE.search(concept) else 'no name'}"] += 1


def noto_pictures(root: Path, emoji: Emoji, skipped: Counter[str]) -> Iterator[Picture]:
    """Yield the drawings of `@iconify-json/noto` without skin tones; icon name and category play the web text."""
    files = ("package", "icons", "chars", "metadata")
    package, icons, chars, metadata = (json.loads((root / f"{file}.json").read_bytes()) for file in files)
    name, version, box = package["name"], package["version"], f"0 0 {icons['width']} {icons['height']}"
    category = {icon: title for title, names in metadata["categories"].items() for icon in names}
    for code, icon in sorted(chars.items()):
        concept = concept_of(code)
        if concept in emoji or not SKIN_TONE.search(concept):
            label = emoji.get(concept, [icon.replace("-", " ")])[0]
            svg = f'<svg {XMLNS} viewBox="{box}">{icons["icons"][icon]["body"]}</svg>'.encode()
            yield Picture(name, version, icon, "Apache-2.0", f"{icon}, {category[icon]}", label, svg, concept)
        else:
            skipped[f"{name}: skin tone"] += 1


def limit_shared_text(pictures: Iterable[Picture], skipped: Counter[str]) -> Iterator[Picture]:
    """Sort by uid and keep at most `MAX_SHARED_TEXT` pictures of one package with the same web text."""
    seen: Counter[tuple[str, str]] = Counter()
    for picture in sorted(pictures, key=lambda picture: picture.uid):
        seen[picture.package, picture.web_text] += 1
        if seen[picture.package, picture.web_text] <= MAX_SHARED_TEXT:
            yield picture
        else:
            skipped[f"{picture.package}: text on more than {MAX_SHARED_TEXT} pictures"] += 1


def rasterise(content: bytes) -> Image.Image:
    """A picture on white, margins cropped, short side <= 160 px and long <= 320; `SkippedError` if it is useless."""
    if content[:4] != b"RIFF":
        command = ["rsvg-convert", "--keep-aspect-ratio", f"--width={RENDER_SIDE}", f"--height={RENDER_SIDE}"]
        try:
            done = subprocess.run(command, input=content, capture_output=True, timeout=RENDER_TIMEOUT_S, check=True)
        except subprocess.SubprocessError as error:
            raise SkippedError(f"rsvg-convert: {type(error).__name__}") from error
        content = done.stdout
    drawing = Image.open(io.BytesIO(content)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")
    box = np.array(ImageChops.invert(image).getbbox() or (0, 0, *drawing.size))
    margin = (box[2:] - box[:2]).max() // 20
    image = image.crop(tuple(np.clip(box + margin * np.array([-1, -1, 1, 1]), 0, image.size * 2)))
    scale = min(1.0, SHORT_SIDE / min(image.size), MAX_SIDE / max(image.size))
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    if min(image.size) < MIN_SIDE:
        raise SkippedError(f"a side under {MIN_SIDE} px")
    _, common = max(image.getcolors(image.width * image.height))
    if (np.abs(np.asarray(image, dtype=int) - common).max(axis=-1) > 24).mean() < MIN_INK:
        raise SkippedError("nearly blank")
    return image


def to_row(picture: Picture) -> dict[str, object] | str:
    """Render one picture into a row of the table, or say why it is skipped."""
    try:
        image = rasterise(picture.content)
    except SkippedError as reason:
        return str(reason)
    data = io.BytesIO()
    image.save(data, format="WEBP", quality=85)
    return {
        "uid": picture.uid,
        "image": {"bytes": data.getvalue(), "path": f"{picture.uid}.webp"},
        "web_text": picture.web_text,
        "human_text": picture.human_text,
        "kind": "emoji" if picture.concept else "clipart",
        "width": image.width,
        "height": image.height,
        "licence": picture.licence,
        "source": f"{picture.package}@{picture.version}:{picture.key}",
        "image_id": f"emoji-{picture.concept}" if picture.concept else hashlib.sha256(image.tobytes()).hexdigest()[:16],
    }


def render_all(pictures: list[Picture], skipped: Counter[str]) -> pa.Table:
    """Render in a thread pool, order kept; of the pictures of one package with one `image_id` the first stays."""
    rows: dict[tuple[str, object], dict[str, object]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for picture, row in zip(pictures, pool.map(to_row, pictures), strict=True):
            reason = row if isinstance(row, str) else "repeated picture"
            if isinstance(row, str) or (picture.package, row["image_id"]) in rows:
                skipped[f"{picture.package}: {reason}"] += 1
            else:
                rows[picture.package, row["image_id"]] = row
    return pa.Table.from_pylist(list(rows.values()), schema=SCHEMA)


def main() -> None:
    """Build the Parquet and print what was left out and why."""
    parser = argparse.ArgumentParser(description="Build the clip art and emoji training Parquet.")
    for name in ("openclipart", "fluent", "emojibase", "noto"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"where the {name} package lies unpacked")
    parser.add_argument("--out", type=Path, required=True, help="the Parquet to write")
    args = parser.parse_args()
    skipped: Counter[str] = Counter()
    emoji, vocabulary = read_emojibase(args.emojibase)
    pictures = [*fluent_pictures(args.fluent, emoji, skipped), *noto_pictures(args.noto, emoji, skipped)]
    pictures += openclipart_pictures(args.openclipart, vocabulary, skipped)
    table = render_all([*limit_shared_text(pictures, skipped)], skipped)
    pq.write_table(table, args.out, row_group_size=256, compression="zstd")
    reasons = (f"skipped {count:5d}  {reason}" for reason, count in sorted(skipped.items()))
    print(f"{args.out}: {table.num_rows} rows", *reasons, sep="\n")


if __name__ == "__main__":
    main()
