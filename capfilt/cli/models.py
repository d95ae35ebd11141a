"""The commands that train and measure models: train, eval."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from capfilt.cli.parsing import add_command, positive
from capfilt.errors import ConfigError
from capfilt.version import __version__

if TYPE_CHECKING:
    from capfilt.models.protocols import System

_TRAIN = """
Train a model by a recipe; the same command continues a run that was killed from its last checkpoint.

RECIPE is a YAML file, or the name of a shipped recipe (tiny/pretrain, tiny/captioner, tiny/filter). Paths in it are
relative to the file. `out` and paths given by --set are relative to the current directory.
"""
_TRAIN_EPILOG = """
examples:
  capfilt train my/filter.yaml
  capfilt train tiny/captioner --set data.sources.0.path=my.parquet --set out=runs/mine --set optim.epochs=2

output: the folder `out` with last/ and best/ (models), checkpoints/, log.jsonl, events/ (TensorBoard), recipe.json
exit code: 0 done; 2 repair the recipe, the data or the checkpoint; 3 training stopped (a loss is not finite)
"""
_EVAL = """
Measure a model on held-out image-text pairs.

A judge (the filter): retrieval in both directions by ITC and re-ranked by ITM, matching against mismatched texts, and
calibration. A captioner: CIDEr and BLEU-4, next to two baselines: one constant caption, and the caption of the nearest
training image.
"""
_EVAL_EPILOG = """
examples:
  capfilt eval tiny/filter --pairs val.parquet --text human_text --json eval.json
  capfilt eval tiny/captioner --pairs val.parquet --text human_text --train train.parquet --json caps.json

Values in the JSON are fractions; <key>_ci is the 95 % confidence interval [low, high].
"""


def _train(args: argparse.Namespace) -> None:
    from capfilt.training.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.set)
    if recipe.run.ranks > 1 or args.ray:
        from capfilt.training.distributed import train_on_ray

        folder = train_on_ray(recipe)
    else:
        from capfilt.training.loop import train

        folder = train(recipe)
    log = Path(recipe.out) / "log.jsonl"
    print(f"model   {folder}\nlog     {log}\nnext    capfilt eval {folder} --pairs HELD_OUT.parquet")


def _eval(args: argparse.Namespace) -> None:
    import torch

    from capfilt.evaluation import render
    from capfilt.models.registry import load_system

    if args.json and not Path(args.json).parent.is_dir():
        raise ConfigError(f"--json {args.json}: no folder {Path(args.json).parent}")
    if args.threads:
        torch.set_num_threads(args.threads)
    system = load_system(args.model, args.revision, args.device)
    role = args.role or ("judge" if "judge" in system.card.roles else "captioner")
    system.card.require(role)
    result = _measure_judge(system, args) if role == "judge" else _measure_captioner(system, args)
    facts = {
        "model": str(args.model),
        "pairs": str(args.pairs),
        "text": args.text,
        "role": role,
        "capfilt": __version__,
    }
    if args.json:
        Path(args.json).write_text(json.dumps({**facts, **result}, indent=2) + "\n", encoding="utf-8")
    Console().print(render(result))


def _measure_judge(system: "System", args: argparse.Namespace) -> dict[str, Any]:
    from capfilt.evaluation import evaluate_judge, load_pairs
    from capfilt.models.protocols import RetrievalJudge

    pairs = load_pairs(args.pairs, args.text, image_id=args.image_id)
    judge = cast(RetrievalJudge, system)
    return evaluate_judge(judge, pairs, rerank_k=args.rerank, seed=args.seed, batch_size=args.batch_size)


def _measure_captioner(system: "System", args: argparse.Namespace) -> dict[str, Any]:
    from capfilt.evaluation import evaluate_captioner, load_pairs
    from capfilt.models.protocols import EvaluatedCaptioner

    if args.train is None:
        raise ConfigError("a captioner is compared with two baselines from training pairs: give --train TRAIN.parquet")
    captioner = cast(EvaluatedCaptioner, system)
    captioner.decoding = captioner.measured(args.max_length, args.prompt)
    pairs, train = (load_pairs(path, args.text, image_id=args.image_id) for path in (args.pairs, args.train))
    return evaluate_captioner(captioner, pairs, train, seed=args.seed, batch_size=args.batch_size)


def add_commands(commands: Any) -> None:
    """Add train and eval; `commands`: what `add_subparsers` returned."""
    train = add_command(commands, "train", _train, description=_TRAIN, epilog=_TRAIN_EPILOG)
    train.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a shipped recipe")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        help="set a key: optim.lr=1e-4, data.sources.0.path=x",
    )
    train.add_argument("--ray", action="store_true", help="use Ray even for one rank; run.ranks > 1 always uses it")

    evaluate = add_command(commands, "eval", _eval, description=_EVAL, epilog=_EVAL_EPILOG)
    evaluate.add_argument("model", metavar="MODEL", help="folder, shipped name such as tiny/filter, or Hugging Face id")
    evaluate.add_argument("--pairs", required=True, help="Parquet file with an image column and a text column")
    evaluate.add_argument("--text", default="text", help="text column (default: text)")
    evaluate.add_argument("--image-id", help="column that identifies an image (default: the bytes of the image)")
    evaluate.add_argument("--role", choices=["judge", "captioner"], help="default: judge if the model is one")
    evaluate.add_argument("--train", help="captioner: Parquet file with the training pairs of the baselines")
    evaluate.add_argument("--rerank", type=positive, default=32, help="ITM re-ranks the top K of ITC (default: 32)")
    evaluate.add_argument(
        "--max-length",
        type=positive,
        help="captioner: maximum number of tokens, with the prompt (default: the model's; BLIP: 30)",
    )
    evaluate.add_argument("--prompt", help="captioner: as in its training (default: the model's)")
    evaluate.add_argument("--json", help="write every value to this file")
    evaluate.add_argument("--revision", help="commit of a Hugging Face id, 40 hex digits")
    evaluate.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    evaluate.add_argument("--threads", type=positive, help="number of torch threads")
    evaluate.add_argument("--batch-size", type=positive, default=64, help="images per batch (default: 64)")
    evaluate.add_argument("--seed", type=int, default=0, help="for mismatched texts and intervals (default: 0)")
