"""The clip art builder: metadata and titles without a renderer, pictures and the written table with one."""

import importlib.util
import io
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image


def load_builder() -> ModuleType:
    path = Path(__file__).parents[2] / "data" / "build_clipart.py"
    spec = importlib.util.spec_from_file_location("build_clipart", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


builder = load_builder()
needs_rsvg = pytest.mark.skipif(
    shutil.which("rsvg-convert") is None, reason="rsvg-convert is missing: apt-get install librsvg2-bin"
)
PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"
SQUARE = '<rect width="80" height="40" fill="red"/>'


def svg(title: str, keywords: tuple[str, ...], body: str = SQUARE, licence: str = PUBLIC_DOMAIN) -> bytes:
    words = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="80" height="40" viewBox="0 0 80 40"><metadata>
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><cc:Work><dc:title>{title}</dc:title>
<dc:description>a   drawing</dc:description><dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject>
<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata>{body}</svg>""".encode()


def test_metadata_keeps_title_and_keywords_as_published() -> None:
    assert builder.parse_metadata(svg(" arrow08\n", ("shape", "", "hash"))) == ("arrow08", "arrow08, shape, hash")


def test_description_stands_in_for_absent_keywords() -> None:
    assert builder.parse_metadata(svg("cat", ()))[1] == "cat, a drawing"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<svg", "broken XML"),
        (b"<svg/>", "not declared public domain"),
        (svg("cat", (), licence="http://creativecommons.org/licenses/GPL/2.0/"), "not declared public domain"),
    ],
)
def test_unusable_svg_is_skipped_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(builder.SkippedError, match=reason):
        builder.parse_metadata(content)


@pytest.mark.parametrize(
    ("title", "human"),
    [
        ("Sleeping_cat", "Sleeping cat"),
        ("two cats", "two cats"),
        ("cat02", None),
        ("Cestino vuoto", None),
        ("cat icon theme", None),
        ("", None),
    ],
)
def test_only_descriptive_titles_become_human_text(title: str, human: str | None) -> None:
    assert builder.clean_title(title, frozenset({"sleeping", "cat", "two", "icon"})) == human


def test_concepts_ignore_case_and_variation_selector() -> None:
    assert builder.concept_of("2764-FE0F-200D-1F525") == builder.concept_of("2764-200d-1f525")


def picture(key: str, content: bytes, web_text: str = "cat") -> object:
    return builder.Picture("pack", "1.0", key, "public-domain", web_text, None, content)


def test_shared_text_is_limited_and_order_is_by_uid() -> None:
    skipped: Counter[str] = Counter()
    kept = list(builder.limit_shared_text((picture(str(n), b"") for n in range(20)), skipped))
    assert len(kept) == builder.MAX_SHARED_TEXT
    assert sum(skipped.values()) == 20 - builder.MAX_SHARED_TEXT
    assert [item.uid for item in kept] == sorted(item.uid for item in kept)


def test_emoji_packages_share_concepts(tmp_path: Path) -> None:
    (tmp_path / "en").mkdir()
    entry = {"label": "sun", "hexcode": "2600-FE0F", "tags": ["bright"]}
    (tmp_path / "en" / "data.json").write_text(json.dumps([entry]))
    (tmp_path / "package.json").write_text(json.dumps({"name": "pack", "version": "1.0"}))
    (tmp_path / "assets").mkdir()
    Image.new("RGBA", (256, 256), "gold").save(tmp_path / "assets" / "2600-fe0f.webp")
    (tmp_path / "assets" / "1f44b-1f3fb.webp").write_bytes(b"")
    icons = {"width": 128, "height": 128, "icons": {"sun": {"body": SQUARE}, "wave": {"body": SQUARE}}}
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    (tmp_path / "chars.json").write_text(json.dumps({"2600": "sun", "1f44b-1f3fb": "wave"}))
    (tmp_path / "metadata.json").write_text(json.dumps({"categories": {"Travel & Places": ["sun"]}}))
    skipped: Counter[str] = Counter()
    emoji, vocabulary = builder.read_emojibase(tmp_path)
    (fluent,) = builder.fluent_pictures(tmp_path, emoji, skipped)
    (noto,) = builder.noto_pictures(tmp_path, emoji, skipped)
    assert vocabulary == {"sun", "bright"}
    assert (fluent.web_text, noto.web_text) == ("sun, bright", "sun, Travel & Places")
    assert fluent.human_text == noto.human_text == "sun"
    assert fluent.concept == noto.concept
    assert skipped == {"pack: skin tone": 2}


def test_webp_is_laid_on_white_and_shrunk() -> None:
    drawing = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    drawing.paste("blue", (64, 0, 192, 256))
    data = io.BytesIO()
    drawing.save(data, format="WEBP", lossless=True)
    image = builder.rasterise(data.getvalue())
    assert min(image.size) <= builder.SHORT_SIDE
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((image.width // 2, image.height // 2)) == (0, 0, 255)


@needs_rsvg
def test_svgs_render_or_are_counted(tmp_path: Path) -> None:
    half = '<rect width="40" height="40" fill="red"/><rect x="70" y="30" width="10" height="10"/>'
    contents = {"half": svg("a", (), half), "blank": svg("b", (), ""), "broken": b"not an svg"}
    skipped: Counter[str] = Counter()
    table = builder.render_all([picture(key, content) for key, content in contents.items()], skipped)
    (row,) = table.to_pylist()
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert image.format == "WEBP"
    assert image.size == (row["width"], row["height"]) == (320, 160)
    assert row["source"] == "pack@1.0:half"
    assert skipped == {"pack: nearly blank": 1, "pack: rsvg-convert: CalledProcessError": 1}
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert list(features) == table.column_names
