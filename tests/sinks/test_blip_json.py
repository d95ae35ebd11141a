import json
from collections.abc import Callable
from pathlib import Path

from capfilt.sinks.base import Picture
from capfilt.sinks.blip_json import write_blip_json

Pictures = Callable[..., Picture]
A, B = f"{10:016x}", f"{11:016x}"


def test_lists_apart_and_images_beside_them(tmp_path: Path, kept_picture: Pictures) -> None:
    pictures = [
        kept_picture(10, {"web": 'a "cät"\u2028', "synthetic": "made"}),
        kept_picture(11, {"human": "seen"}, format="JPEG"),
    ]
    assert write_blip_json(pictures, tmp_path, "demo") == {"web": 1, "synthetic": 1, "human": 1}
    folder = tmp_path / "blip_json"
    golden = {
        "demo_filtered.json": f'[\n{{"image": "images/{A}.png", "caption": "a \\"cät\\"\u2028"}}\n]\n',
        "demo_synthetic_filtered.json": f'[\n{{"image": "images/{A}.png", "caption": "made"}}\n]\n',
        "demo_human.json": f'[\n{{"image": "images/{B}.jpg", "caption": "seen"}}\n]\n',
    }
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")} == golden
    images = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert images == {f"{A}.png": pictures[0].data, f"{B}.jpg": pictures[1].data}


def test_urls_and_those_that_are_not_known(tmp_path: Path, kept_picture: Pictures) -> None:
    pictures = [kept_picture(1), kept_picture(2, {"web": "a", "synthetic": "b"}, url=None), kept_picture(3)]
    counts = write_blip_json(pictures, tmp_path, "demo", "url")
    assert counts == {"web": 2, "synthetic": 0, "human": 0, "without_url": 2}
    assert not (tmp_path / "blip_json" / "images").exists()
    lists = {path.name: json.loads(path.read_text()) for path in (tmp_path / "blip_json").iterdir()}
    urls = [{"url": f"https://a.example/{i}", "caption": f"thing {i}"} for i in (1, 3)]
    assert lists == {"demo_filtered.json": urls, "demo_synthetic_filtered.json": [], "demo_human.json": []}
