"""Pillow's process-wide settings, changed only while images are being decoded."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from PIL import Image

_KEPT_BLOCKS = 2
"""Blocks of image memory (16 MB at most) that Pillow keeps for the next image: saves a tenth of the decoding time."""
_core = Image.core  # type: ignore[attr-defined]


class _Decoding:
    """Counts the blocks that are decoding, over all threads; the first one changes the settings, the last restores."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._warnings, self._blocks = warnings.catch_warnings(), 0

    @property
    def active(self) -> bool:
        """Whether a block of any thread holds the settings now."""
        return self._users > 0

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._blocks = _core.get_blocks_max()
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                _core.set_blocks_max(max(self._blocks, _KEPT_BLOCKS))
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                _core.set_blocks_max(self._blocks)
                self._warnings.__exit__(None, None, None)


_decoding = _Decoding()


def decoding_one() -> AbstractContextManager[None]:
    """`decoding` around a single image: nothing to do inside another block, whose settings it uses without a lock."""
    return nullcontext() if _decoding.active else decoding()


@contextmanager
def decoding() -> Iterator[None]:
    """Let Pillow keep memory between images and silence its warnings, in this process, until the block ends.

    What Pillow warns about (large images, broken EXIF) is either refused by `images` or harmless. Blocks may be nested
    and may run in several threads: the settings are restored when the last one ends. `images` needs one per image; put
    another around the decoding of many images so that the memory is kept from one to the next.
    """
    _decoding.enter()
    try:
        yield
    finally:
        _decoding.leave()
