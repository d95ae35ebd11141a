"""Build the bundled sample: about a thousand real pictures with texts, small enough to ship and to run in minutes.

It takes a fifth of the pictures of `build_clipart.py` (clip-art under the titles people gave it, emoji) and Debian's 14
photographs, gives a quarter of them another picture's text, adds exact and near duplicates and broken files, and says
apart, in truth.parquet, which row is what. The human-annotated part has none of these pictures. To run, with pillow 13:

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04
    for deb in lomiri-*.deb; do dpkg-deb -x $deb lomiri; done
    python data/build_sample.py --clipart clipart.parquet --lomiri lomiri --out data/sample
"""

import re

SEED = 2201
SAMPLE_MODULUS = 5  # one picture of five may be in the sample; training leaves out the same ones by `is_sample`
WEB = {"openclipart": 390, "fluent": 255, "noto": 190, "lomiri": 7}  # pictures, before duplicates
HUMAN = {"openclipart": 60, "fluent": 26, "noto": 26, "lomiri": 7}
MISMATCHED, EXACT, NEAR, WEB_FILES = 0.27, 30, 30, 3  # MISMATCHED of the pictures, a quarter of all rows
MAX_FLAGS, MAX_FOLDER = 20, 10  # pictures of a package whose text says "flag"; pictures of one folder of clip-art
SAME_PICTURE = 4.0  # two 16 x 16 thumbnails whose mean absolute difference (0..255) is below this are one picture
PHOTO_SIDE = 200  # pixels, short side
FORMATS = {"WEBP": 70, "JPEG": 16, "PNG": 13, "GIF": 1}  # weights; GIF and PNG with a palette
PACKAGES = {"openclipart-svg": "openclipart", "@lobehub/fluent-emoji-3d": "fluent", "@iconify-json/noto": "noto"}
URLS = {
    "openclipart": "https://packages.debian.org/bookworm/openclipart-svg#{}",
    "fluent": "https://unpkg.com/@lobehub/fluent-emoji-3d@1.1.0/assets/{}",
    "noto": "https://api.iconify.design/noto/{}.svg",
    "lomiri": "https://packages.debian.org/bookworm/lomiri-wallpapers#{}",
}
CREDITS = {"openclipart": "Open Clip Art Library", "fluent": "Microsoft, LobeHub", "noto": "Google"}
# Words that sort pictures rather than say what is seen, and titles that name the collection or a neighbouring file.
GENERIC = frozenset(
    [
        "and",
        "art",
        "black",
        "blue",
        "body",
        "button",
        "card",
        "clip",
        "computer",
        "education",
        "entertainment",
        "equipment",
        "food",
        "for",
        "general",
        "green",
        "hash",
        "icon",
        "image",
        "mammal",
        "map",
        "member",
        "menu",
        "nations",
        "office",
        "orange",
        "other",
        "part",
        "pattern",
        "people",
        "place",
        "red",
        "shape",
        "sign",
        "simple",
        "special",
        "symbol",
        "text",
        "the",
        "theme",
        "tool",
        "transport",
        "unit",
        "united",
        "unsorted",
        "vehicle",
        "web",
        "white",
        "with",
        "work",
        "yellow",
    ]
)
MISLEADING = re.compile(
    r"clip ?art|etiquette|collection|theme|iconset|hash\(|s[iu]bmission|template|keycap|o’clock", re.I
)
# Author, licence and caption of the photographs; authors and licences as in the packages' copyright file.
PHOTOS = {
    "aitzgorri_by_Aitzol_Berasategi.jpg": (
        "Aitzol Berasategi", "CC-BY-4.0",
        "A green meadow and an autumn forest below a rocky grey mountain ridge.",
    ),
}  # fmt: skip
