"""Measure images per second of captioning and scoring, for capfilt and for what a user would run instead.

    python -m benchmarks.throughput --images 48 --json throughput.json       # under 60 minutes on two cores
    python -m benchmarks.throughput --images 2 --shape tiny --data-juicer none      # seconds; says nothing about speed

BLIP-base shape at 384 px with random weights, exactly 20 new tokens, web text and caption judged by ITC and ITM, JPEGs
of 640 x 480. One process, all cores. The contenders take turns, every other round in the opposite order, after a
warm-up; the result is the median over the rounds. Slow contenders get fewer images per round (the table says how many).
With `--keep` the results are also written to benchmarks/results/throughput.{json,md,svg}.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import throughput_extra as extra
from benchmarks import throughput_flops as flops
from benchmarks.naive import Transformers
from benchmarks.throughput_engine import Engine, Spent, breakdown, captioner, judge
from benchmarks.throughput_inputs import PROMPT, ROOT, SHAPES, Inputs, make_inputs
from benchmarks.throughput_report import markdown, svg
from benchmarks.throughput_venv import DataJuicer, install
from capfilt.models.device import has_bf16

SHARES = {"naive": 8, "batched": 3, "data_juicer": 6, "data_juicer_calls": 6, "capfilt_separate": 1}
"""Contender -> divisor: a round has images / divisor images. The other contenders have the divisor 2."""


def engines(inputs: Inputs, new_tokens: int) -> dict[str, Engine]:
    """Create capfilt in every precision that this processor supports."""
    reader, filter_ = captioner(inputs, new_tokens), judge(inputs)
    reader8, filter8 = captioner(inputs, new_tokens, "int8"), judge(inputs, "int8")
    found = {
        "capfilt_separate": Engine(reader, filter_),
        "capfilt_shared": Engine(reader, filter_, shared=True),
        "capfilt_int8_captioner": Engine(reader8, filter_),
        "capfilt_int8": Engine(reader8, filter8),
    }
    if has_bf16():
        found["capfilt_bf16"] = Engine(captioner(inputs, new_tokens, "bf16"), judge(inputs, "bf16"))
    return found


def start_data_juicer(args: argparse.Namespace, inputs: Inputs, folder: Path) -> DataJuicer | None:
    """Start Data-Juicer's process.

    Returns None if it is not asked for or cannot start; its calls are then made in this process.
    """
    if args.data_juicer == "none":
        return None
    try:
        python = install() if args.data_juicer == "auto" else Path(args.data_juicer)
        return DataJuicer(python, inputs, folder / "data-juicer", args.new_tokens, torch.get_num_threads())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"Data-Juicer left out, its calls are made here: {error}", flush=True)
        return None


PEAK_REPEATS = {"base": 40, "middle": 40, "tiny": 1}
"""Shape -> products that measure the peak; tiny says nothing about speed."""


class Contenders:
    """The contenders: `calls` maps a name to a function that processes a number of images and returns seconds."""

    def __init__(self, inputs: Inputs, folder: Path, new_tokens: int, juicer: DataJuicer | None, repeats: int) -> None:
        self.inputs, self.out, self.repeats = inputs, folder / "out.parquet", repeats
        theirs = Transformers(inputs.captioner, inputs.filter, new_tokens)
        self.engines = engines(inputs, new_tokens)
        self.spent: list[Spent] = []
        self.peaks: list[float] = []
        self.calls: dict[str, Callable[[int], float]] = {
            "naive": lambda n: _seconds(theirs.naive, inputs, n),
            "batched": lambda n: _seconds(theirs.batched, inputs, n),
        }
        if juicer is not None:
            self.calls["data_juicer"] = juicer.run
        else:
            self.calls["data_juicer_calls"] = lambda n: _seconds(theirs.data_juicer_calls, inputs, n)
        self.calls |= {name: self._engine(name) for name in self.engines}

    def images(self, name: str) -> int:
        """Return the number of images per round."""
        return max(len(self.inputs.uids) // SHARES.get(name, 2), 1)

    def _engine(self, name: str) -> Callable[[int], float]:
        def seconds(images: int) -> float:
            engine = self.engines[name]
            spent = engine.run(self.inputs.shard, self.out, images)
            if name == "capfilt_separate":
                self.spent.append(engine.spent)
            return spent

        return seconds

    def measure(self, rounds: int) -> dict[str, float]:
        """Return the median images/s of each contender."""
        for name, call in self.calls.items():
            call(1)
            print(f"warm: {name}", flush=True)
        self.spent.clear()
        return extra.alternated({name: self._speed(name) for name in self.calls}, rounds)

    def _speed(self, name: str) -> Callable[[], float]:
        def speed() -> float:
            measured = name == "capfilt_separate"  # between two measurements of the peak, which drifts with the clock
            if measured:
                self.peaks.append(flops.gemm_peak(self.repeats))
            found = self.images(name) / self.calls[name](self.images(name))
            if measured:
                self.peaks.append(flops.gemm_peak(self.repeats))
            print(f"{name:24} {found:8.3f} images/s", flush=True)
            return found

        return speed


def _seconds(call: Callable[[list[bytes], list[str]], Any], inputs: Inputs, images: int) -> float:
    started = time.perf_counter()
    call(inputs.jpegs[:images], inputs.texts[:images])
    return time.perf_counter() - started


def limits(contenders: Contenders, new_tokens: int) -> dict[str, Any]:
    """Compute the shares of the GEMM peak and of wall time, for fp32 with two towers."""
    engine = contenders.engines["capfilt_separate"]
    config, prompt = engine.captioner.config, len(engine.captioner.tokenizer.prompt(PROMPT))
    tokenizer, inputs = engine.judge.tokenizer, contenders.inputs
    length = len(tokenizer.ids(inputs.texts[:1])[0])
    lengths = [length, new_tokens + 2]
    peak = median(contenders.peaks)
    images = contenders.images("capfilt_separate")
    model = median(spent.model for spent in contenders.spent)
    vision = median(spent.vision for spent in contenders.spent)
    executed = flops.executed_flop(config, prompt, new_tokens, lengths)
    return {
        "gemm_peak": peak,
        "gflop": {
            "model": flops.image_flop(config, prompt, new_tokens, lengths) / 1e9,
            "executed": executed / 1e9,
            "vision": flops.vision_flop(config) / 1e9,
        },
        "gemm_share": images * executed / 1e9 / model / peak,
        "vision_gemm_share": images * 2 * flops.vision_flop(config) / 1e9 / vision / peak,
        "other_share": 1 - median(spent.model / spent.wall for spent in contenders.spent),
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the whole benchmark."""
    inputs = make_inputs(folder, args.shape, args.images)
    juicer = start_data_juicer(args, inputs, folder)
    contenders = Contenders(inputs, folder, args.new_tokens, juicer, PEAK_REPEATS[args.shape])
    speeds = contenders.measure(args.rounds)
    subset = max(args.images // 6, 1)
    result: dict[str, Any] = {"data_juicer": None, **speeds, "setup": _setup(args, contenders)}
    result["data_juicer_any"] = speeds.get("data_juicer", speeds.get("data_juicer_calls"))
    result["images"] = {name: contenders.images(name) for name in speeds}
    result |= limits(contenders, args.new_tokens)
    result["breakdown_ms"] = breakdown(contenders.engines["capfilt_separate"], inputs, subset, folder / "parts.parquet")
    if juicer is not None:
        juicer.close()
    del contenders
    if not args.short:
        result["n5_over_n1"] = extra.five_captions(inputs, args.new_tokens, subset, args.rounds)
        result |= extra.two_actors(inputs, args.new_tokens, subset, args.rounds)
        result["growth"] = extra.growth(folder, args.shape, inputs, args.new_tokens, subset, args.rounds)
    if args.pipeline:
        shape = "tiny" if args.shape == "tiny" else "middle"
        result["pipeline"] = extra.pipeline(folder / "pipeline", shape, args.pipeline, 4, args.new_tokens)
    return result


def _setup(args: argparse.Namespace, contenders: Contenders) -> dict[str, Any]:
    return {
        "shape": args.shape,
        "image_size": contenders.engines["capfilt_separate"].captioner.image_size,
        "new_tokens": args.new_tokens,
        "texts": 2,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="images; slow contenders get fewer")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="base")
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument(
        "--data-juicer", default="auto", help="auto (creates a virtual environment), none, or the path of a Python"
    )
    parser.add_argument("--short", action="store_true", help="contenders only, without further measurements")
    parser.add_argument(
        "--pipeline", type=int, default=0, metavar="IMAGES", help="`capfilt run` on as many, in 4 shards"
    )
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/throughput.*")
    args = parser.parse_args(argv)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    text = json.dumps(result, indent=1) + "\n"
    if args.json:
        args.json.write_text(text)
    if args.keep:
        (ROOT / "benchmarks/results/throughput.json").write_text(text)
        (ROOT / "benchmarks/results/throughput.md").write_text(markdown(result))
        if "growth" in result:
            (ROOT / "benchmarks/results/throughput.svg").write_text(svg(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
