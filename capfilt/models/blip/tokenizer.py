"""WordPiece tokenizer with BLIP's two extra tokens.

The official tokenizer is BERT's with [DEC] and [ENC] appended. Hub folders store it without naming the two, so their
ids come from the model's config (`TextConfig.dec_id` and the id after it).

Shape legend: T texts, L tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor

from capfilt.errors import CheckpointError, InputError
from capfilt.models.blip.config import TextConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece(vocab: Sequence[str]) -> Tokenizer:
    """Build an uncased BERT tokenizer, which puts [CLS] and [SEP] around a text.

    Args:
        vocab: tokens in the order of their ids.

    Raises:
        CheckpointError: a special token is missing.
    """
    ids = {token: i for i, token in enumerate(vocab)}
    missing = [token for token in SPECIAL if token not in ids]
    if missing:
        raise CheckpointError(f"a WordPiece vocabulary without {', '.join(missing)}")
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return tokenizer


@dataclass
class TextTokenizer:
    """Converts texts to ids and back. `truncated` counts the texts that were cut at `max_tokens`."""

    tokenizer: Tokenizer
    config: TextConfig
    max_tokens: int = 40
    truncated: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        sep = self.tokenizer.token_to_id("[SEP]")
        if sep != self.config.sep_id or self.config.enc_id >= self.config.vocab_size:
            raise CheckpointError(
                f"tokenizer and config.json disagree: [SEP] is {sep} there and {self.config.sep_id} here; "
                f"[ENC] is {self.config.enc_id} of {self.config.vocab_size} tokens"
            )
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, [CLS] ... [SEP], at most `max_tokens` long (the end is cut, [SEP] kept).

        Raises:
            InputError: an empty text, or one without any token.
        """
        limit = min(self.max_tokens, self.config.max_positions)
        rows = []
        for text, encoding in zip(texts, self.tokenizer.encode_batch(list(texts)), strict=True):
            ids = list(encoding.ids)
            if len(ids) <= 2:
                raise InputError(f"text {text!r} is empty; leave the row out or give it a text")
            if len(ids) > limit:
                self.truncated += 1
                ids = [*ids[: limit - 1], self.config.sep_id]
            rows.append(ids)
        return rows

    def batch(self, texts: Sequence[str], prompt: str = "") -> tuple[Tensor, Tensor]:
        """Return the ids of texts as one padded batch.

        Args:
            texts: T texts.
            prompt: put before each text.

        Returns:
            ids (T, L) int64, padded on the right; mask (T, L) bool, True = token.

        Raises:
            InputError: no texts, or an empty text, whatever the prompt.
        """
        if not texts:
            raise InputError("no texts; give one or more")
        for text in texts if prompt else ():
            if not text.strip():
                raise InputError(f"text {text!r} is empty; leave the row out or give it a text")
        rows = self.ids([prompt + text for text in texts])
        ids = torch.full((len(rows), max(map(len, rows))), self.config.pad_id, dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask

    def prompt(self, text: str) -> Tensor:
        """Return (L,) int64: [DEC] and the tokens of a prompt, without [SEP]."""
        tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
        return torch.tensor([self.config.dec_id, *tokens])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        out: str = self.tokenizer.decode([i for i in ids if i < self.config.dec_id], skip_special_tokens=True)
        return out.strip()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and vocab.txt, as `BertTokenizerFast` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        vocab = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        (folder / "vocab.txt").write_text("".join(token + "\n" for token, _ in vocab), encoding="utf-8")
        config = {
            "tokenizer_class": "BertTokenizer",
            "processor_class": "BlipProcessor",
            "do_lower_case": True,
            "model_max_length": self.config.max_positions,
            **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)),
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(folder: Path, config: TextConfig) -> TextTokenizer:
    """Read the tokenizer of a folder, from tokenizer.json or else vocab.txt.

    Raises:
        CheckpointError: neither file exists, one is damaged, or it contradicts the model's config.
    """
    file, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    if file.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            raise CheckpointError(f"{file}: not a tokenizer ({error})") from error
        return TextTokenizer(tokenizer, config)
    if vocab.is_file():
        return TextTokenizer(wordpiece(_lines(vocab)), config)
    raise CheckpointError(f"{folder}: neither tokenizer.json nor vocab.txt")


def _lines(vocab: Path) -> list[str]:
    """Read one token per line. Only a line feed ends a line, because tokens may be other separators of Unicode."""
    try:
        return vocab.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except ValueError as error:
        raise CheckpointError(f"{vocab}: not a vocabulary in UTF-8 ({error})") from error
