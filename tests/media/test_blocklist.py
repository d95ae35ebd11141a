"""The list of known-bad hashes."""

import hashlib
from pathlib import Path

import pytest

from capfilt.errors import ConfigError
from capfilt.media.blocklist import Blocked


def test_sha256_and_md5_in_any_case(tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(f"{hashlib.sha256(b'a').hexdigest().upper()}\n\n{hashlib.md5(b'b').hexdigest()}\n")
    blocked = Blocked(str(file))
    assert blocked.bytes(b"a")
    assert blocked.bytes(b"b")
    assert not blocked.bytes(b"c")
    assert blocked.has(None, hashlib.md5(b"b").hexdigest())
    assert not blocked.has(None, None)
    assert not Blocked(None).bytes(b"a")


def test_its_digest_is_of_what_it_lists(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(f"{'0' * 64}\n{'1' * 32}\n")
    two.write_text(f"{'1' * 32} {'0' * 64}")
    assert Blocked(str(one)).digest() == Blocked(str(two)).digest() != Blocked(None).digest()


def test_other_lines_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("0" * 63)
    with pytest.raises(ConfigError, match=r"bad: '0{63}' is neither a sha256"):
        Blocked(str(tmp_path / "bad"))
    with pytest.raises(ConfigError, match="cannot be read"):
        Blocked(str(tmp_path / "gone"))
