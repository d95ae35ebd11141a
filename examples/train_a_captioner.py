"""Fine-tune the tiny captioner for a few steps on the human part of the bundled sample.

    python examples/train_a_captioner.py [PAIRS.parquet]

The same as `capfilt train tiny/captioner --set ...`: a shipped recipe with a handful of keys changed. Four steps change
little; leave out `limit` and `optim.epochs` and give your own pairs for a real training.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from capfilt.training.loop import train
from capfilt.training.recipe import load_recipe

PAIRS = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1] / "data/sample/human/00000.parquet")

with TemporaryDirectory() as folder:
    recipe = load_recipe(
        "tiny/captioner",
        [
            f"data.sources=[{{path: {PAIRS}, text: text, uid: key, limit: 32}}]",
            f"out={folder}/captioner",
            "optim.epochs=1",
            "optim.global_batch=8",
            "optim.warmup_steps=1",
            "run.precision=fp32",
            "run.log_every=1",
        ],
    )
    model = train(recipe)
    print(f"model in {model.name}/: {', '.join(sorted(file.name for file in model.iterdir()))}")
    for line in (Path(recipe.out) / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            print(f"step {entry['step']}: loss {entry['loss']:.3f}")
