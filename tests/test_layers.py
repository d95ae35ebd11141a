"""The layers of docs/architecture.md hold: no upward import, no cycle (contracts in pyproject.toml)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def test_imports_keep_the_contracts() -> None:
    pytest.importorskip("importlinter", reason="import-linter is missing: pip install -e '.[test]'")
    found = subprocess.run([sys.executable, "-c", LINT], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
