"""Compare downloading by capfilt's ingest with plain img2dataset, from a server in another process.

python -m benchmarks.download [--images 5000] [--threads 64] [--rounds 3] [--json benchmarks/results/download.json]

Both fetch the same URLs of 25 kB (mean) from 127.0.0.1 in one process with the same number of threads, and write
Parquet. capfilt also verifies, decodes, hashes (sha256, pixels, perceptual) and publishes atomically. img2dataset runs
with resize_mode=no. They take turns, each in a fresh process. `images/s` is that of the whole call, from the first
import to the last file. `shard` is that of the shard, without imports, the list and the start of img2dataset's pool.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

KINDS = 50
"""Number of different images."""
SIDE = 384
SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "web"


def bodies() -> list[bytes]:
    """Return JPEG files of 20 to 40 kB, from the images of the bundled sample."""
    found: list[bytes] = []
    for file in sorted(SAMPLE.glob("*.parquet")):
        for row in pq.read_table(file)["image"].to_pylist():
            with suppress(OSError, TypeError):  # a few rows of the sample are broken on purpose
                buffer = BytesIO()
                Image.open(BytesIO(row["bytes"])).convert("RGB").resize((SIDE, SIDE)).save(buffer, "JPEG", quality=92)
                if 20_000 < len(buffer.getvalue()) < 40_000:
                    found.append(buffer.getvalue())
                if len(found) == KINDS:
                    return found
    return found


def serve(port: Any, images: list[bytes]) -> None:
    """Answer GET /<n>.jpg until killed; put the port number into the queue `port`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = images[int(head.split(b" ", 2)[1].strip(b"/").split(b".")[0]) % len(images)]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def by_img2dataset(urls: Path, folder: Path, threads: int) -> float:
    """Download with img2dataset; return the seconds of the shards from its own statistics."""
    import os

    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset import download

    download(
        url_list=str(urls), input_format="parquet", url_col="url", caption_col="text", output_folder=str(folder),
        output_format="parquet", resize_mode="no", processes_count=1, thread_count=threads,
        number_sample_per_shard=10_000, compute_hash="sha256", enable_wandb=False,
    )  # fmt: skip
    stats = [json.loads(file.read_text()) for file in sorted(folder.glob("*_stats.json"))]
    assert sum(stat["successes"] for stat in stats) == pq.read_metadata(urls).num_rows, stats
    return sum(stat["end_time"] - stat["start_time"] for stat in stats)


def by_capfilt(urls: Path, folder: Path, threads: int) -> float:
    """Download with capfilt; return the seconds of `IngestStage.process`."""
    from capfilt.config.load import validate
    from capfilt.download.img2dataset import load_img2dataset
    from capfilt.sources import open_source
    from capfilt.stages.base import Task
    from capfilt.stages.ingest import IngestStage
    from capfilt.store.layout import RunLayout
    from capfilt.store.shards import manifest

    download = {"threads": threads, "per_host": threads, "allow_hosts": ["127.0.0.1"]}
    source = {"type": "urls", "path": str(urls), "name": "web", "download": download}
    raw = {"sources": [source], "select": {"policy": "keep_all"}, "dedup": {"semantic": None}}
    pipeline = validate(raw, "benchmark")
    units = open_source(pipeline.sources[0], pipeline.ingest, folder).shard_specs(10_000)
    layout = RunLayout(pipeline, folder, tuple(units), {"ingest": "pairs"})
    stage = IngestStage(layout)
    stage.setup()
    load_img2dataset("downloader")
    started = time.perf_counter()
    for shard in range(len(units)):
        stage.process(Task(shard))
    seconds = time.perf_counter() - started
    statuses = [manifest(layout.shard("ingest", shard))["status"] for shard in range(len(units))]
    assert statuses == [{"ok": unit.stop - unit.start} for unit in units], statuses
    return seconds


def _child(work: Callable[..., float], urls: Path, folder: Path, threads: int, out: Any) -> None:
    started = time.perf_counter()
    shards = work(urls, folder, threads)
    seconds = time.perf_counter() - started
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out.put((seconds, shards, max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024))


def timed(work: Callable[..., float], urls: Path, threads: int) -> tuple[float, float, float]:
    """Run one contender in a fresh process; return its seconds, those of the shards, and peak resident MiB."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_child, args=(work, urls, Path(folder), threads, out))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{work.__name__} failed")
        found: tuple[float, float, float] = out.get()
    return found


def measure(images: int, threads: int, rounds: int) -> dict[str, Any]:
    """Measure both contenders in turn, `rounds` times."""
    context = multiprocessing.get_context("spawn")
    port, pictures = context.Queue(), bodies()
    server = context.Process(target=serve, args=(port, pictures), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{port.get()}"
    contenders = {"img2dataset": by_img2dataset, "capfilt": by_capfilt}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    shards: dict[str, list[float]] = {name: [] for name in contenders}
    memory: dict[str, float] = dict.fromkeys(contenders, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        urls = Path(folder) / "urls.parquet"
        pq.write_table(pa.table({"url": [f"{base}/{i}.jpg" for i in range(images)], "text": ["a"] * images}), urls)
        for n in range(rounds):
            for name in list(contenders)[:: 1 if n % 2 == 0 else -1]:
                taken, inside, peak = timed(contenders[name], urls, threads)
                seconds[name].append(round(taken, 2))
                shards[name].append(round(inside, 2))
                memory[name] = max(memory[name], round(peak))
                line = f"{images / taken:7.1f} images/s, shard {images / inside:7.1f}, {peak:5.0f} MiB"
                print(f"{name:12} {line}", file=sys.stderr)
    server.terminate()
    rates = {name: images / statistics.median(found) for name, found in seconds.items()}
    size = round(statistics.mean(map(len, pictures)))
    alone = {name: images / statistics.median(found) for name, found in shards.items()}
    facts = {"images": images, "mean_bytes": size, "threads": threads, "rounds": rounds, "seconds": seconds}
    ratios = {"ratio": rates["capfilt"] / rates["img2dataset"], "shard": alone}
    return {**facts, **rates, **ratios, "shard_ratio": alone["capfilt"] / alone["img2dataset"], "peak_mib": memory}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = measure(args.images, args.threads, args.rounds)
    print(f"capfilt {found['capfilt']:.1f} images/s, img2dataset {found['img2dataset']:.1f}: x {found['ratio']:.2f}")
    print(f"the shard alone, without either's start: x {found['shard_ratio']:.2f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
