"""Create Data-Juicer's virtual environment once, and run its process. See `throughput_data_juicer`."""

import json
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from benchmarks.throughput_data_juicer import VERSION
from benchmarks.throughput_inputs import Inputs

SCRIPT = Path(__file__).with_name("throughput_data_juicer.py")
FOLDER = Path(tempfile.gettempdir()) / f"capfilt-data-juicer-{VERSION}"
UNDECLARED = ("aiohttp", "av", "opencv-python-headless", "ray")
"""Packages that its operators import without declaring them."""
MINUTES = 15
"""Time limit of the installation, most of which is torch."""


def install() -> Path:
    """Return the Python of a virtual environment with Data-Juicer and this environment's torch and transformers.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be created.
    """
    python = FOLDER / "bin/python"
    if not (FOLDER / "installed").exists():
        venv.create(FOLDER, with_pip=True, clear=True)
        same = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers")]
        wanted = [f"py-data-juicer=={VERSION}", *same, *UNDECLARED]
        command = [str(python), "-m", "pip", "install", "-q", *wanted]
        subprocess.run(command, check=True, timeout=60 * MINUTES, stdout=sys.stderr)
        (FOLDER / "installed").touch()
    return python


class DataJuicer:
    """A process that runs the two operators on the benchmark's images."""

    def __init__(self, python: Path, inputs: Inputs, folder: Path, new_tokens: int, threads: int) -> None:
        """Start the process.

        Raises:
            RuntimeError: it does not start; the reason is on standard error.
        """
        folder.mkdir()
        paths = [folder / f"{uid}.jpg" for uid in inputs.uids]
        for path, jpeg in zip(paths, inputs.jpegs, strict=True):
            path.write_bytes(jpeg)
        job: dict[str, Any] = {"captioner": str(inputs.captioner), "filter": str(inputs.filter)}
        job |= {"jpegs": [str(path) for path in paths], "texts": inputs.texts}
        job |= {"new_tokens": new_tokens, "threads": threads}
        (folder / "job.json").write_text(json.dumps(job))
        command = [str(python), str(SCRIPT), str(folder / "job.json")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._answer() != "ready":
            raise RuntimeError("Data-Juicer did not start")

    def run(self, images: int) -> float:
        """Return the seconds for the first `images` images. Raises RuntimeError if the process has ended."""
        pipe = self._process.stdin
        assert pipe is not None
        pipe.write(f"{images}\n")
        pipe.flush()
        answer = self._answer()
        if not answer:
            raise RuntimeError("Data-Juicer ended")
        return float(answer)

    def _answer(self) -> str:
        pipe: IO[str] | None = self._process.stdout
        assert pipe is not None
        return pipe.readline().strip()

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)
