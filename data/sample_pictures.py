"""The pictures that the bundled sample may have, each with its own text: `build_sample.py` chooses among them.

Clip-art and emoji come from the Parquet of `build_clipart.py`, as they are; the 14 photographs from the unpacked Debian
packages lomiri-wallpapers-16.04 and -20.04, with captions written for this sample. Also here: which texts say what is
seen, which may play human annotation, which pictures look alike, which texts name one thing, and how files are made.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

MAX_FLAGS, MAX_FOLDER = 30, 16  # pictures of one package that are flags; of one folder of clip-art
SAME_PICTURE = 4.0  # below this mean absolute difference (0..255) of 16 x 16 thumbnails two pictures are one
PHOTO_SIDE, QUALITY, COLOURS = 200, 85, 128  # short side in pixels; of JPEG and WebP; of GIF and PNG
CREDITS = {"openclipart": "Open Clip Art Library", "fluent": "Microsoft; LobeHub", "noto": "Google"}
URLS = {
    "openclipart": "https://packages.debian.org/bookworm/openclipart-svg#{}",
    "fluent": "https://unpkg.com/@lobehub/fluent-emoji-3d@1.1.0/assets/{}",
    "noto": "https://api.iconify.design/noto/{}.svg",
    "lomiri": "https://packages.debian.org/source/bookworm/lomiri-wallpapers#{}",
}
# Words that sort pictures, or only colour or place them, without saying what is seen.
_GENERIC = """
activities africa alcohol animal art asia astronomy beverage black blue body building button card clip clothing colour
computer day dessert education electronic entertainment equipment europe festive flags flat food general green grey
hash historic holiday hotel human icon image international left logo mammal map media member menu music nations north
number objects office orange other part party pattern people person pink place plant purple recreation red religion
right science shape sign signs simple south special sport sports states style symbol symbols text theme tool tools toy
transport transportation travel unit united universal unsorted vehicle weather web white work yellow
"""
GENERIC = frozenset(_GENERIC.split())
# Texts that name the collection or a neighbouring file, emoji that are nothing but letters, and what is not for all.
UNSUITABLE = re.compile(
    r"clip ?art by|etiquette|collection|theme|iconset|s[iu]bmission|template|map sym|"
    r"keycap|thirty|o.clock|button|sex\b",
    re.I,
)
# Name of the file, author and licence as in the packages' copyright file, caption.
PHOTOS = """\
aitzgorri|Aitzol Berasategi|CC-BY-4.0|A green meadow and an autumn forest below a rocky grey mountain ridge.
picosdeeuropa|Aitzol Berasategi|CC-BY-4.0|A dirt trail climbs a grassy slope toward snowy rocky peaks under a blue sky.
sunset|Aitzol Berasategi|CC-BY-4.0|The sun sets behind low hills seen from a rocky summit.
life|Aitzol Berasategi|CC-BY-4.0|A small stream runs over rocks through a shady forest.
friends|Aitzol Berasategi|CC-BY-4.0|Two brown dogs look out of the window of a white wooden house.
Picture_0B|Trevor "Freespace"|CC-BY-4.0|Half a fig lies in a red bowl on a grey stone surface.
Picture_1A|Trevor "Freespace"|CC-BY-4.0|Paint brushes with bright blue, green, pink and yellow bristles.
Wine|Jakub Mede|CC-BY-4.0|A hand drum on a beanbag in front of a table with a bottle and a glass of wine.
seeding|Clemens Engelhardt|CC0-1.0|White dandelion seed heads in a meadow in the evening sun.
Bridge|Sander Klootwijk|CC-BY-SA-4.0|Steel cables of a bridge cross in front of a pale blue sky.
Dragonfly|Bolly|CC-BY-SA-4.0|A dragonfly sits on a twig in front of green leaves and a blue sky.
free|Peter Nerlich|CC-BY-SA-4.0|A small bird ornament with spread wings hangs below white round lamps.
greentock|Peter Nerlich|CC-BY-SA-4.0|A close-up of a white and green wall clock seen from an angle.
Kleiber|Lukas Baubkus|CC-BY-SA-3.0|A small bird clings to the side of a thick tree trunk."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture before it is a row: `text` is its own, `human` a clean description, `names` all words that name it."""

    package: str
    image_id: str
    text: str
    human: str | None
    names: frozenset[str]
    data: bytes
    folder: str
    url: str
    licence: str
    credit: str


def words(text: str) -> frozenset[str]:
    """The words of three letters or more, lower case, without those that say nothing in any text."""
    return frozenset(re.findall(r"[^\W\d_]{3,}", text.lower())) - {"and", "for", "from", "the", "with"}


def is_describable(text: str, vocabulary: frozenset[str]) -> bool:
    """Whether a person could recognise the picture by `text`: a known word in it that is not a mere category."""
    return bool((words(text) & vocabulary) - GENERIC) and not UNSUITABLE.search(text)


def is_annotation(picture: Picture, vocabulary: frozenset[str]) -> bool:
    """Whether `human` is a clean English description: known words only, one of them no category, and no flag."""
    human = picture.human or ""
    clean = words(human) <= vocabulary and "-" not in human and "flag" not in picture.names
    return picture.package == "lomiri" or (clean and is_describable(human, vocabulary))


def clash(names: frozenset[str], text: str) -> bool:
    """Whether a text has a word in common with a picture's names, or one that begins alike or contains the other."""
    return any(a[:4] == b[:4] or a in b or b in a for a in words(text) for b in names)


def clipart_pictures(path: Path) -> tuple[list[Picture], frozenset[str]]:
    """The pictures of clipart.parquet, and the words that are known: those of emoji, and of clean clip-art titles."""
    rows = pq.read_table(path).to_pylist()
    names: dict[str, frozenset[str]] = {}
    for row in rows:
        texts = (row["web_text"], row["human_text"] or "", row["source"].rpartition(":")[2])
        names[row["image_id"]] = names.get(row["image_id"], frozenset()) | words(" ".join(texts))
    pictures = []
    for row in rows:
        source, _, file = row["source"].rpartition(":")
        package = next(name for name in CREDITS if name in source)
        place = (file.rpartition("/")[0], URLS[package].format(file), row["licence"], CREDITS[package])
        texts = (row["web_text"], row["human_text"], names[row["image_id"]])
        pictures.append(Picture(package, row["image_id"], *texts, row["image"]["bytes"], *place))
    known = (picture.human or "" if picture.package == "openclipart" else picture.text for picture in pictures)
    return pictures, words(" ".join(known))


def photographs(root: Path) -> Iterator[Picture]:
    """Yield the photographs of the unpacked Lomiri wallpapers, short side `PHOTO_SIDE`."""
    for line in PHOTOS.splitlines():
        name, author, licence, caption = line.split("|")
        path = next(root.rglob(f"{name}_by_*.jpg"))
        image = Image.open(path).convert("RGB")
        scale = PHOTO_SIDE / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        place = ("", URLS["lomiri"].format(path.name), licence, author)
        yield Picture("lomiri", path.name, caption, caption, words(caption), encode(image, "JPEG"), *place)


def encode(image: Image.Image, kind: str, quality: int = QUALITY) -> bytes:
    """The bytes of an RGB image as a file; PNG and GIF get a palette, to stay small."""
    data = io.BytesIO()
    if kind in ("PNG", "GIF"):
        image.quantize(COLOURS).save(data, format=kind)
    else:
        image.save(data, format=kind, quality=quality)
    return data.getvalue()


def decode(data: bytes) -> Image.Image:
    """The image of a file as RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def retouch(data: bytes, edit: int) -> bytes:
    """A near duplicate: poor quality, 90 % of the size, 2 % cropped off each side, or 6 % darker."""
    image = decode(data)
    width, height = image.size
    if edit == 0:
        return encode(image, "WEBP", quality=60)
    if edit == 1:
        image = image.resize((round(0.9 * width), round(0.9 * height)), Image.Resampling.LANCZOS)
    elif edit == 2:
        image = image.crop((width // 50, height // 50, width - width // 50, height - height // 50))
    else:
        image = ImageEnhance.Brightness(image).enhance(0.94)
    return encode(image, "WEBP")


def distinct(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Yield the pictures that look like none before them and stay within the limits on flags and folders."""
    seen = np.empty((0, 16, 16, 3))
    used: Counter[str] = Counter()
    for picture in pictures:
        thumbnail = np.asarray(decode(picture.data).resize((16, 16)), dtype=float)
        flag = "flag" in picture.names
        group = f"{picture.package} {'flag' if flag else picture.folder}"
        crowded = (flag or picture.folder) and used[group] >= (MAX_FLAGS if flag else MAX_FOLDER)
        if not crowded and not (np.abs(seen - thumbnail).mean(axis=(1, 2, 3)) < SAME_PICTURE).any():
            used[group] += 1
            seen = np.concatenate([seen, thumbnail[None]])
            yield picture
