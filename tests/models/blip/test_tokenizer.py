"""The same ids as transformers, from its files and from ours; limits and errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer

from capfilt.errors import CheckpointError, InputError
from capfilt.models.blip.config import TextConfig
from capfilt.models.blip.tokenizer import TextTokenizer, read_tokenizer, wordpiece

STRINGS = [
    "a picture of a cat sitting on the red grass",
    "Café naïve ÉÈ ß İstanbul ﬁne",
    "don't stop; (really?) -- 3.14% of $5 & more_under_score",
    "猫 on grass, 猫猫 dog",
    "emoji 🐈 cat\u200d dog\ufe0f",
    "tab\tnew\nline\u00a0nbsp\u2028sep\x00null\x07bell",
    "[CLS] [SEP] [MASK] [PAD] [UNK] [DEC] [ENC] [SEP]cat",
    "x" * 99 + " " + "x" * 101 + " cat",
    "the cat " * 60,
    "  ##s ##ing cats  ",
    "е́ cyrillic ñ ñ",
]


def config(vocab: list[str]) -> TextConfig:
    return TextConfig(vocab_size=len(vocab) + 2, dec_id=len(vocab), max_positions=512)


@pytest.fixture(scope="module")
def tokenizers(vocab: list[str], folders: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ours and theirs by where they come from; all must agree."""
    ours = TextTokenizer(wordpiece(vocab), config(vocab), max_tokens=512)
    folder, bare = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("bare")
    ours.save(folder)
    (bare / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    read = {"vocab": ours}
    for name, where in {"theirs": folders("filter"), "saved": folder, "bare": bare}.items():
        read[name] = read_tokenizer(where, config(vocab))
        read[name].max_tokens = 512
    opened = {"auto": AutoTokenizer.from_pretrained(folder), "bert": BertTokenizer.from_pretrained(folder)}
    opened |= {"from vocab.txt": BertTokenizer(vocab=str(folder / "vocab.txt"))}
    return {"ours": read, "theirs": opened}


def check(tokenizers: dict[str, Any], text: str) -> None:
    expected = {name: opened(text).input_ids for name, opened in tokenizers["theirs"].items()}
    reference = expected["from vocab.txt"]
    assert all(ids == reference for ids in expected.values()), expected
    if 2 < len(reference) <= 512:
        for name, ours in tokenizers["ours"].items():
            assert ours.ids([text]) == [reference], name


@pytest.mark.parametrize("text", STRINGS)
def test_same_ids(text: str, tokenizers: dict[str, Any]) -> None:
    check(tokenizers, text)


WORDS = st.sampled_from([*STRINGS[0].split(), ",", "é", "Ö", "##s", "[SEP]"])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.lists(WORDS).map(" ".join))
def test_same_ids_of_any_text(tokenizers: dict[str, Any], text: str) -> None:
    check(tokenizers, text)


def test_batch_pads_right(vocab: list[str]) -> None:
    ours = TextTokenizer(wordpiece(vocab), config(vocab))
    ids, mask = ours.batch(["cat", "a red cat"])
    assert ids.tolist()[0] == [101, vocab.index("cat"), 102, 0, 0]
    assert mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert ids.dtype == torch.int64
    prompted, _ = ours.batch(["cat"], "a picture of ")
    assert prompted.tolist()[0] == [101, *(vocab.index(w) for w in ["a", "picture", "of", "cat"]), 102]
    assert ours.prompt("a picture of ").tolist() == [len(vocab), *prompted.tolist()[0][1:4]]


def test_too_long_is_cut_and_counted(vocab: list[str]) -> None:
    ours = TextTokenizer(wordpiece(vocab), config(vocab), max_tokens=6)
    rows = ours.ids(["cat " * 5, "a red cat on", "cat " * 4])
    assert [len(row) for row in rows] == [6, 6, 6]
    assert all(row[0] == 101 and row[-1] == 102 for row in rows)
    assert ours.truncated == 1
    short = TextTokenizer(wordpiece(vocab), TextConfig(len(vocab) + 2, dec_id=len(vocab), max_positions=4))
    assert len(short.ids(["cat " * 9])[0]) == 4, "positions are a limit too"


@pytest.mark.parametrize("text", ["", "  \n", "\u200b"])
def test_empty_text(text: str, vocab: list[str]) -> None:
    ours = TextTokenizer(wordpiece(vocab), config(vocab))
    with pytest.raises(InputError, match="is empty"):
        ours.batch(["cat", text])
    with pytest.raises(InputError, match="no texts"):
        ours.batch([])


def test_empty_text_behind_a_prompt(vocab: list[str]) -> None:
    ours = TextTokenizer(wordpiece(vocab), config(vocab))
    with pytest.raises(InputError, match="is empty"):
        ours.batch(["cat", " "], "a picture of ")


def test_decode_leaves_out_special_tokens(tokenizers: dict[str, Any], vocab: list[str]) -> None:
    ids = [101, *(vocab.index(token) for token in ["a", "cat", "##s", ",", "dog"]), 102, 0, len(vocab), len(vocab) + 1]
    for name, ours in tokenizers["ours"].items():
        assert ours.decode(ids) == "a cats, dog", name


def test_vocabulary_of_unicode_separators(tmp_path: Path, vocab: list[str]) -> None:
    """A token may be a line separator; only a line feed ends a line of vocab.txt."""
    odd = [*vocab, "\u2028", "\x85", "end"]
    ours = TextTokenizer(wordpiece(odd), config(odd))
    ours.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert read_tokenizer(tmp_path, config(odd)).tokenizer.token_to_id("end") == len(odd) - 1


def test_files_that_are_no_tokenizer(tmp_path: Path, vocab: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.txt"):
        read_tokenizer(tmp_path, config(vocab))
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe[PAD]")
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_tokenizer(tmp_path, config(vocab))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\ncat\n")
    with pytest.raises(CheckpointError, match=r"without \[CLS\], \[SEP\], \[MASK\]"):
        read_tokenizer(tmp_path, config(vocab))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        read_tokenizer(tmp_path, config(vocab))
    with pytest.raises(CheckpointError, match=r"\[SEP\] is 102 there and 3 here"):
        TextTokenizer(wordpiece(vocab), TextConfig(len(vocab) + 2, dec_id=len(vocab), sep_id=3))
