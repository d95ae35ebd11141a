"""Initialise MED's text transformer from MiniLM-L6 (MIT, from PyPI), as the paper does from BERT.

Of its vocabulary the pieces in the texts at hand: the web texts and, where they are at hand, those of the diagrams,
neither the human part's nor the test's. The encoder reads a text as MiniLM does, as the mean of its tokens, and stays
frozen, as the vision tower does: what a row's pairs teach is the heads, cross-attention and the decoder's
self-attention, which begins as the encoder's.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.layers import KV
from capfilt.models.blip.med import MED
from capfilt.models.blip.names import hub_names
from capfilt.models.blip.text import TextTransformer
from capfilt.models.blip.tokenizer import TextTokenizer, wordpiece
from capfilt.training.objectives.blip.load_towers import take_text
from capfilt.training.warmstart.text import choose_vocab, read_texts, teacher

MAX_WORDS = 30
POSITIONS = 64


class MeanText(TextTransformer):
    """MiniLM, frozen except for the captioner. Without an image, a text is encoded once for all models.

    Then the mean of the text's tokens comes out, (B, 1, D), in training with a share `drop` of it zero. With an image,
    cross-attention is between the layers, nothing is cached, and all tokens are returned.
    """

    def __init__(self, config: MEDConfig, read: dict[bytes, Tensor], drop: float) -> None:
        super().__init__(config)
        self.read, self.drop = _Shared(read), nn.Dropout(drop)
        self.freeze()

    def freeze(self, frozen: bool = True) -> None:
        """Train or freeze MiniLM's parameters; cross-attention and the decoder's self-attention are always trained."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not frozen or is_fresh(name))

    def run(self, half: str, ids: Tensor, mask: Tensor | None, image_kv: list[KV] | None) -> Tensor:
        """See `TextTransformer.run`."""
        if half != "encoder" or image_kv is not None or mask is None:
            return super().run(half, ids, mask, image_kv)
        known = self.read.texts
        keys = [row[there].numpy().tobytes() for row, there in zip(ids, mask, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            known.update(zip([keys[i] for i in new], self._means(ids[new], mask[new]), strict=True))
        found: Tensor = self.drop(torch.stack([known[key] for key in keys])[:, None])
        return found

    @torch.no_grad()
    def _means(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (B, D) float32, without dropout."""
        training = self.training
        self.eval()
        with torch.autocast("cpu", enabled=False):
            x, there = super().run("encoder", ids, mask, None), mask[..., None].float()
        self.train(training)
        return (x * there).sum(1) / there.sum(1)


def is_fresh(name: str) -> bool:
    """Return whether a parameter of the text transformer is new, not MiniLM's."""
    return ".cross_attention." in name or ".self_attention.decoder." in name


@dataclass(frozen=True)
class _Shared:
    """Cache of encoded texts, which copies of a model share."""

    texts: dict[bytes, Tensor]

    def __deepcopy__(self, memo: object) -> "_Shared":
        return self


@cache
def _read_by(folder: Path) -> dict[bytes, Tensor]:
    """Return the cache of this folder's model in this process."""
    return {}


def make_text(sources: list[str], out: Path, layers: Sequence[int]) -> None:
    """Write a folder for `take_start` and `read_tokenizer`.

    Args:
        sources: `file:column,column` as for the warm start; their pieces are the vocabulary.
        layers: which of MiniLM's six.
    """
    torch.manual_seed(0)
    model = teacher()
    bert = model[0].auto_model
    words = choose_vocab(read_texts(sources, MAX_WORDS), model.tokenizer, bert.config.vocab_size)
    config = TextConfig(
        vocab_size=len(words) + 2, width=bert.config.hidden_size, layers=len(layers),
        heads=bert.config.num_attention_heads, mlp_width=bert.config.intermediate_size, max_positions=POSITIONS,
        dropout=0.1, dec_id=len(words), sep_id=words.index("[SEP]"), pad_id=0,
    )  # fmt: skip
    text = TextTransformer(MEDConfig(VisionConfig(), config))
    text.load_state_dict(_cut(bert, text, layers, _ids(model.tokenizer, words)), strict=False)
    out.mkdir(parents=True, exist_ok=True)
    TextTokenizer(wordpiece([*words, "[DEC]", "[ENC]"]), config, POSITIONS).save(out)
    state = {k: v.contiguous() for k, v in text.state_dict().items() if "cross_" not in k and ".decoder." not in k}
    save_file(state, out / "text.safetensors")
    (out / "text.json").write_text(json.dumps(asdict(config), indent=2))


def take_start(med: MED, folder: Path, drop: float) -> None:
    """Load MED's text transformer from such a folder; cross-attention is left unchanged."""
    med.text = MeanText(med.config, _read_by(folder), drop)
    take_text(med.text, folder)


def _ids(tokenizer: Any, words: list[str]) -> list[int]:
    """Return the ids of words in MiniLM's vocabulary; [DEC] and [ENC] are initialised as [CLS]."""
    found: list[int] = tokenizer.convert_tokens_to_ids(words)
    return found + [tokenizer.cls_token_id] * 2


def _cut(bert: Any, text: TextTransformer, layers: Sequence[int], ids: list[int]) -> dict[str, Tensor]:
    """Return MiniLM's tensors under our names, with its one token type added to the positions."""
    theirs = dict(bert.state_dict())
    embed = "embeddings.{}_embeddings.weight"
    theirs[embed.format("word")] = theirs[embed.format("word")][ids]
    positions = theirs[embed.format("position")][:POSITIONS]
    theirs[embed.format("position")] = positions + theirs[embed.format("token_type")][0]
    found = {}
    for name in text.state_dict():
        hub = hub_names(f"text.{name}", ["text_encoder"])[0].removeprefix("text_encoder.")
        parts = hub.split(".")
        if parts[:2] == ["encoder", "layer"]:
            parts[2] = str(layers[int(parts[2])])
        if ".".join(parts) in theirs:
            found[name] = theirs[".".join(parts)]
    return found
