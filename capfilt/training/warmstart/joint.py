"""Warm start, step 2: learn a space in which the two teachers agree, the target of the students' two towers.

EfficientNet-Lite0's pooled feature and MiniLM's sentence embedding stay frozen; two small heads are trained by ITC to
256 common dimensions. Each tower then learns its side alone, which needs no pairs, and no two towers change at the same
time: the ViT uses every stored view (`distill.py --joint`), the text encoder every text (`text.py --joint`).
Measured on 368 held-out photographs, text-to-image R@1 / R@10: the heads reach 0.28 / 0.73, the distilled ViT with
MiniLM's side 0.18 / 0.61, EfficientNet's side with the distilled text encoder 0.21 / 0.68, both students 0.13 / 0.54.

    python -m capfilt.training.warmstart.joint --views views/p0 views/p1 --val views/val --out warm/joint.pt
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from capfilt.media.text import pre_caption
from capfilt.training.warmstart.heads import Heads
from capfilt.training.warmstart.teacher_targets import column_values, stored_order

COLUMNS = ("human_text", "web_text")


class TeacherPairs:
    """Both teachers' features of pairs: pooled features of the stored views, embeddings of their rows' texts."""

    def __init__(self, folders: list[str], encode: Any) -> None:
        self.pooled, self.row, texts = list[Tensor](), list[Tensor](), list[list[str]]()
        known: dict[str, int] = {}
        for folder in folders:
            options = argparse.Namespace(**json.loads((Path(folder) / "done.json").read_text()))
            columns = [
                column_values(Path(options.pairs), options.min_score, options.max_score, name) for name in COLUMNS
            ]
            base = known.setdefault(f"{options.pairs} {options.min_score} {options.max_score}", len(texts))
            if base == len(texts):
                texts += [[pre_caption(text or "") for text in row] for row in zip(*columns, strict=True)]
            self.pooled.append(torch.from_numpy(np.load(Path(folder) / "pooled.npy")))
            self.row.append(torch.tensor([base + image for image, _ in stored_order(len(columns[0]), options)]))
        self.features, self.rows = torch.cat(self.pooled), torch.cat(self.row)
        self.texts = torch.stack([torch.from_numpy(encode([row[k] for row in texts])) for k in range(len(COLUMNS))], 1)
        self.has = torch.tensor([[bool(text) for text in row] for row in texts])

    def batch(self, size: int, web: float) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs.

        Args:
            size: number of pairs, B.
            web: share of web texts, in [0, 1].

        Returns:
            Pooled features (B, 1280), text embeddings (B, 384), and row numbers (B,).
        """
        pick = torch.randint(len(self.features), (size,))
        row = self.rows[pick]
        column = ((torch.rand(size) < web) | ~self.has[row, 0]).long() * self.has[row, 1]
        return self.features[pick].float(), self.texts[row, column], row


def train(heads: Heads, pairs: TeacherPairs, args: argparse.Namespace) -> None:
    """Train the heads by symmetric ITC over the batch. Rows of one image are positives of each other."""
    spread = pairs.features.float()
    heads.image_mean.copy_(spread.mean(0))
    heads.image_scale.copy_(spread.std(0) + 1e-3)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=args.steps)
    for _ in range(args.steps):
        pooled, embedded, row = pairs.batch(args.batch, args.web)
        similarity = heads.images(pooled) @ heads.texts(embedded).T * heads.scale.exp()
        same = (row[:, None] == row).float()
        target = same / same.sum(1, keepdim=True)
        loss = F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


@torch.no_grad()
def measure(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Text-to-image R@1 and R@10, and the AUC of pairs against other rows' texts.

    Args:
        images, texts: (N, 256) each, L2-normalised; row i of both is a pair.
    """
    similarity = texts @ images.T
    true = similarity.diag()
    rank = (similarity >= true[:, None]).sum(1)
    return {
        "t2i_r1": (rank <= 1).float().mean().item(),
        "t2i_r10": (rank <= 10).float().mean().item(),
        "itc_auc": (true[:, None] > similarity.roll(7, 1).diag()[None]).float().mean().item(),
    }


def encoder() -> Any:
    """MiniLM as a function: N texts -> (N, 384) float32."""
    from capfilt.training.warmstart.text import teacher

    model = teacher()
    return lambda texts: model.encode(texts, batch_size=64, show_progress_bar=False)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--views", nargs="+", required=True, help="folders of teacher_targets.py, from files with both texts"
    )
    parser.add_argument("--val", required=True, help="views of held-out pairs, for the numbers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--web", type=float, default=0.3, help="share of web texts, 0 to 1")
    parser.add_argument("--drop", type=float, default=0.3, help="dropout of the heads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    encode = encoder()
    pairs, held = TeacherPairs(args.views, encode), TeacherPairs([args.val], encode)
    heads = Heads(drop=args.drop)
    train(heads, pairs, args)
    heads.eval()
    with torch.no_grad():
        found = measure(heads.images(held.features.float()), heads.texts(held.texts[held.rows, 0]))
    print(json.dumps(found))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(heads.state_dict(), args.out)


if __name__ == "__main__":
    main()
