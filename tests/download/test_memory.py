"""Memory: 64 threads and large bodies stay below a limit; the room for whole bodies."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from capfilt.download.body import SMALL, MemoryBudget
from capfilt.download.opener import Opener
from tests.download.conftest import fetch
from tests.download.server import HostileServer
from tests.pictures import encode, photo

PROGRAM = """
import pathlib, re, sys, threading, urllib.request
from concurrent.futures import ThreadPoolExecutor
from capfilt.download.opener import Opener
from capfilt.config.source import Download

url, threads = sys.argv[1], int(sys.argv[2])
opener = Opener(Download(allow_hosts=["127.0.0.1"], threads=threads, per_host=threads, timeout=120))
barrier = threading.Barrier(threads)

def one(i):
    barrier.wait()
    with opener.open(urllib.request.Request(url)) as response:
        size = len(response.read())
    opener.release(size)
    return size

def peak():  # ru_maxrss would be the parent's if that is larger
    return int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024

before = peak()
with ThreadPoolExecutor(threads) as pool:
    total = sum(pool.map(one, range(threads)))
print(total, before, peak())
"""


def peak(threads: int, size: int) -> tuple[int, int]:
    """MB of a process that fetches so many bodies of that size at once: all, and above what it had before."""
    with HostileServer({"/large": b"x" * size}) as server:
        line = [sys.executable, "-c", PROGRAM, server.url("/large"), str(threads)]
        done = subprocess.run(line, check=True, capture_output=True, text=True, timeout=60)
    total, before, after = map(int, done.stdout.split())
    assert total == threads * size
    return after, after - before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_large_bodies_are_not_all_in_memory() -> None:
    assert peak(24, 12 * 2**20)[1] < 130  # 288 MB of bodies


@pytest.mark.slow
def test_a_worker_of_64_threads_stays_below_512_mb() -> None:
    assert peak(64, 20 * 2**20)[0] < 256  # 1.3 GB of bodies; the worker has other things too


def body(size: int) -> Any:
    file = SpooledTemporaryFile(max_size=SMALL)  # noqa: SIM115
    file.write(b"x" * size)
    return file


def test_a_body_waits_for_room() -> None:
    room, order = MemoryBudget(3 * SMALL), []
    assert room.read(body(2 * SMALL), 2 * SMALL) == b"x" * 2 * SMALL

    def second() -> None:
        room.read(body(2 * SMALL), 2 * SMALL)
        order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    room.read(body(SMALL), SMALL)  # small bodies do not wait
    time.sleep(0.05)
    order.append("first")
    room.release(2 * SMALL)
    thread.join(5)
    room.release(2 * SMALL)
    assert (order, room._used) == (["first", "second"], 0)


def test_a_body_larger_than_the_room_goes_alone() -> None:
    room = MemoryBudget(SMALL)
    for _ in range(2):
        assert len(room.read(body(3 * SMALL), 3 * SMALL)) == 3 * SMALL
        room.release(3 * SMALL)
    closed = body(2 * SMALL)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        room.read(closed, 2 * SMALL)
    assert room._used == 0


def test_what_is_read_takes_room_until_it_has_landed(server: HostileServer, ask_server: Callable[..., Opener]) -> None:
    server.bodies |= {"/large": b"x" * (SMALL + 1), "/small": b"x" * SMALL}
    opener, used = ask_server(), []
    give = opener._budget.release
    opener._budget.release = lambda size: (used.append(opener._budget._used), give(size))  # type: ignore[method-assign]
    for path in ("/large", "/small"):
        assert fetch(opener, server.url(path))[0] == server.bodies[path]
    assert (used, opener._budget._used) == ([SMALL + 1, 0], 0)


WORKER = """
import pathlib, re, sys
from capfilt.config.load import validate
from capfilt.sources import open_source
from capfilt.store.layout import RunLayout, ShardSpec
from capfilt.stages.base import Task
from capfilt.stages.ingest import IngestStage

download = {"threads": 64, "per_host": 64, "retries": 0, "timeout": 60, "allow_hosts": ["127.0.0.1"]}
source = {"type": "urls", "path": sys.argv[1], "name": "web", "download": {**download, "max_error_rate": 1}}
pipeline = validate({"sources": [source], "select": {"policy": "keep_all"}, "dedup": {"semantic": None}}, "test")
run = pathlib.Path(sys.argv[2])
if len(sys.argv) == 3:  # the list is read by the run's first process
    units = open_source(pipeline.sources[0], pipeline.ingest, run).shard_specs(1000)
    print(units[0].path, units[0].stop)
    sys.exit()
layout = RunLayout(pipeline, run, (ShardSpec("web", sys.argv[3], 0, int(sys.argv[4])),), {"ingest": "pairs"})
worker = IngestStage(layout)
worker.setup()
worker.process(Task(0))
print(int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_whole_worker_stays_below_512_mb_under_a_hostile_server(tmp_path: Path) -> None:
    picture = encode(photo(2400, 1600), "PNG", compress_level=0)  # 11.5 MB
    with HostileServer({"/large": picture, "/page": b"<html>" * 10**6}) as server:
        urls = [server.url("/large", i=i) for i in range(40)] + [server.url("/page", i=i) for i in range(40)]
        urls += [server.url("/x", do=do, i=i) for do in ("endless", "huge", "fat_headers") for i in range(10)]
        pq.write_table(pa.table({"url": urls, "text": ["t"] * len(urls)}), tmp_path / "list.parquet")
        line = [sys.executable, "-c", WORKER, str(tmp_path / "list.parquet"), str(tmp_path / "run")]
        listed = subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout.split()
        done = subprocess.run([*line, *listed], check=True, capture_output=True, text=True, timeout=120)
    reasons = pq.read_table(tmp_path / "run/pairs/00000.parquet")["reason"].to_pylist()
    assert reasons == [None] * 40 + ["image_unreadable"] * 40 + ["too_many_bytes"] * 30
    assert int(done.stdout) < 512
