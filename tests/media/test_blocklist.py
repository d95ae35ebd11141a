"""The list of known-bad hashes."""

import hashlib
from pathlib import Path

import pytest

from capfilt.errors import ConfigError
from capfilt.media.blocklist import BlockList, FileDigests


def test_sha256_and_md5_in_any_case(tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(f"{hashlib.sha256(b'a').hexdigest().upper()}\n\n{hashlib.md5(b'b').hexdigest()}\n")
    block_list = BlockList(str(file))
    assert block_list.blocks(FileDigests(b"a"))
    assert block_list.blocks(FileDigests(b"b"))
    assert not block_list.blocks(FileDigests(b"c"))
    assert block_list.lists(None, hashlib.md5(b"b").hexdigest())
    assert not block_list.lists(None, None)
    assert not BlockList(None).blocks(FileDigests(b"a"))


def test_a_file_is_hashed_at_most_once_per_algorithm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("0" * 64)
    hashed: list[bytes] = []
    real = hashlib.sha256
    digests = FileDigests(b"a")
    block_list = BlockList(str(tmp_path / "list"))
    monkeypatch.setattr(hashlib, "sha256", lambda data: hashed.append(data) or real(data))
    assert not block_list.blocks(digests)
    assert digests.sha256 == real(b"a").hexdigest()
    assert hashed == [b"a"]
    BlockList(None).blocks(FileDigests(b"b"))
    assert hashed == [b"a"]


def test_its_digest_is_of_what_it_lists(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(f"{'0' * 64}\n{'1' * 32}\n")
    two.write_text(f"{'1' * 32} {'0' * 64}")
    digest = BlockList(str(one)).content_digest()
    assert digest == BlockList(str(two)).content_digest() != BlockList(None).content_digest()


def test_other_lines_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("0" * 63)
    with pytest.raises(ConfigError, match=r"bad: '0{63}' is neither a sha256"):
        BlockList(str(tmp_path / "bad"))
    with pytest.raises(ConfigError, match="cannot be read"):
        BlockList(str(tmp_path / "gone"))
