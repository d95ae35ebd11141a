"""The experiment's text start: MiniLM-L6 (MIT, from PyPI) as MED's text transformer, as the paper starts from a BERT.

Some of its layers, and of its vocabulary the pieces that the texts at hand use most. Then, on texts without images, the
encoder's half learns again the whole MiniLM's embedding, as the mean of a text's tokens, and the decoder's half, which
MiniLM does not have, to go on with a text. The texts are the web texts and, where they are at hand, those of the
diagrams: neither the human part's nor the test's.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.layers import KV
from capfilt.models.blip.med import MED
from capfilt.models.blip.names import hub_names
from capfilt.models.blip.text import LMHead, TextTransformer
from capfilt.models.blip.tokenizer import TextTokenizer, wordpiece
from capfilt.training.towers import take_text
from capfilt.training.warmstart.text import choose_vocab, read_texts, teacher

MAX_WORDS = 30
POSITIONS = 64
BATCH, RATE, TOKENS = 48, 5e-4, 22


class MeanText(TextTransformer):
    """Gives the mean of a text's tokens in place of [CLS], where there is no image."""

    def run(self, half: str, ids: Tensor, mask: Tensor | None, image_kv: list[KV] | None) -> Tensor:
        """See `TextTransformer.run`."""
        x = super().run(half, ids, mask, image_kv)
        if half != "encoder" or image_kv is not None or mask is None:
            return x
        there = mask[..., None].to(x.dtype)
        return torch.cat([(x * there).sum(1, keepdim=True) / there.sum(1, keepdim=True), x[:, 1:]], dim=1)


def make_text(sources: list[str], out: Path, layers: Sequence[int], vocab: int, steps: int, held: int) -> None:
    """Writes a folder that `take_start` and `read_tokenizer` read.

    Args:
        sources: `file:column,column` as for the warm start.
        layers: which of MiniLM's six.
        vocab: tokens, [DEC] and [ENC] among them.
        held: texts kept out of the distillation, to be told how well it went.
    """
    torch.manual_seed(0)
    texts = read_texts(sources, MAX_WORDS)
    texts = [texts[i] for i in torch.randperm(len(texts)).tolist()]
    model = teacher()
    bert = model[0].auto_model
    words = choose_vocab(texts, model.tokenizer, vocab)
    config = TextConfig(
        vocab_size=vocab, width=bert.config.hidden_size, layers=len(layers), heads=bert.config.num_attention_heads,
        mlp_width=bert.config.intermediate_size, max_positions=POSITIONS, dropout=0.1, dec_id=len(words),
        sep_id=words.index("[SEP]"), pad_id=0,
    )  # fmt: skip
    tokenizer = TextTokenizer(wordpiece([*words, "[DEC]", "[ENC]"]), config, TOKENS)
    text, head = MeanText(MEDConfig(VisionConfig(), config)), LMHead(config)
    text.load_state_dict(_cut(bert, text, layers, _ids(model.tokenizer, words)), strict=False)
    targets = torch.from_numpy(model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False))
    _learn(text, head, tokenizer, texts, targets, steps, held)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out)
    save_file({k: v.contiguous() for k, v in text.state_dict().items() if "cross_" not in k}, out / "text.safetensors")
    save_file(head.state_dict(), out / "head.safetensors")
    (out / "text.json").write_text(json.dumps(asdict(config), indent=2))


def take_start(med: MED, folder: Path) -> None:
    """MED's text transformer and LM head from such a folder; cross-attention stays as it is."""
    med.text = MeanText(med.config)
    take_text(med.text, folder)
    med.lm_head.load_state_dict(load_file(folder / "head.safetensors"))


def _learn(
    text: MeanText, head: LMHead, tokenizer: TextTokenizer, texts: list[str], targets: Tensor, steps: int, held: int
) -> None:
    """AdamW on 1 - cosine and on the next token's cross-entropy."""

    def losses(rows: Sequence[int]) -> list[Tensor]:
        ids, mask = tokenizer.batch([texts[i] for i in rows])
        found = text.run("encoder", ids, mask, None)[:, 0].float()
        begun = ids[:, :-1].clone()
        begun[:, 0] = tokenizer.config.dec_id
        logits = head(text.run("decoder", begun, None, None), text.word.weight)
        labels = ids.masked_fill(~mask, -100)[:, 1:]
        miss = 1 - F.cosine_similarity(found, targets[list(rows)], dim=-1).mean()
        return [miss, F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())]

    parameters = [*text.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    text.train()
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.stack(losses(torch.randint(len(texts) - held, (BATCH,)).tolist())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    text.eval()
    with torch.no_grad():
        miss, lm = (float(one) for one in losses(range(len(texts) - held, len(texts))))
    print(f"text start, held-out texts: 1 - cosine {miss:.3f}, LM {lm:.2f}", file=sys.stderr, flush=True)


def _ids(tokenizer: Any, words: list[str]) -> list[int]:
    """Of the words in MiniLM's vocabulary; [DEC] and [ENC] begin as [CLS]."""
    found: list[int] = tokenizer.convert_tokens_to_ids(words)
    return found + [tokenizer.cls_token_id] * 2


def _cut(bert: Any, text: TextTransformer, layers: Sequence[int], ids: list[int]) -> dict[str, Tensor]:
    """MiniLM's tensors under our names; the one token type that texts have goes into the positions."""
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
