"""img2dataset's modes behind a look at the header."""

from io import BytesIO

import pytest
from PIL import Image

from capfilt.download.resize import Resize
from capfilt.media.images import ImageError
from tests.pictures import encode, photo

BIG = encode(photo(300, 200))


@pytest.mark.parametrize(
    ("mode", "size"),
    [("keep_ratio", (96, 64)), ("keep_ratio_largest", (64, 43)), ("center_crop", (64, 64)), ("border", (64, 64))],
)
def test_each_mode_gives_a_jpeg_of_its_size(mode: str, size: tuple[int, int]) -> None:
    image = Image.open(BytesIO(Resize(mode, 64)(BIG, 10**6)))
    assert (image.format, image.size) == ("JPEG", size)


def test_the_header_is_looked_at_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Resize("keep_ratio", 64)
    monkeypatch.setattr(resize, "_resizer", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="300 x 200 pixels is above the cap of 59999"):
        resize(BIG, 59_999)


def test_what_cannot_be_decoded_is_an_image_error() -> None:
    with pytest.raises(ImageError):
        Resize("border", 64)(BIG[:200], 10**6)
    with pytest.raises(ImageError):
        Resize("border", 64)(b"<html>", 10**6)
