"""Decoding changes Pillow's settings and Python's warning filters only while it runs."""

import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from PIL import Image

from capfilt.media.images import ImageError, decode_image, header_area
from capfilt.media.pillow import decoding
from tests.pictures import encode, photo

_IMPORT = """
import io, sys, warnings
from PIL import Image
import numpy, imagehash
before = (list(warnings.filters), Image.core.get_blocks_max(), Image.MAX_IMAGE_PIXELS)
import capfilt.media.images, capfilt.sources
assert (list(warnings.filters), Image.core.get_blocks_max(), Image.MAX_IMAGE_PIXELS) == before
"""


def settings() -> tuple[list[object], object, int]:
    return list(warnings.filters), warnings.showwarning, Image.core.get_blocks_max()


def test_an_import_changes_neither_pillow_nor_the_warning_filters() -> None:
    subprocess.run([sys.executable, "-c", _IMPORT], check=True)


def test_a_call_restores_the_settings_also_when_it_fails() -> None:
    before = settings()
    decode_image(encode(photo(), "JPEG"))
    with pytest.raises(ImageError):
        decode_image(b"no image")
    assert settings() == before


def test_the_settings_hold_until_the_last_block_of_any_thread_ends() -> None:
    before, entered, leave = settings(), threading.Event(), threading.Event()

    def other() -> None:
        with decoding():
            entered.set()
            leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with decoding(), decoding():
            running = pool.submit(other)
            assert entered.wait(10)
            assert Image.core.get_blocks_max() == 2
        assert Image.core.get_blocks_max() == 2
        assert settings()[0] != before[0]
        leave.set()
        running.result()
    assert settings() == before


def test_a_caller_that_keeps_more_memory_is_not_limited() -> None:
    before = Image.core.get_blocks_max()
    Image.core.set_blocks_max(5)
    try:
        with decoding():
            assert Image.core.get_blocks_max() == 5
        assert Image.core.get_blocks_max() == 5
    finally:
        Image.core.set_blocks_max(before)


def test_the_result_does_not_depend_on_the_caller_s_warning_filters() -> None:
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(BytesIO(large))
        assert header_area(large, 10**8) == 10**8


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
