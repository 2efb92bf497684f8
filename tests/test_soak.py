"""The benchmark of memory starts in every row that it adds to the table of plugins."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="psutil is not installed")
pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("lightly", reason="lightly is not installed")

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_hooks_and_callbacks_are_trained_together() -> None:
    rows = ("mmpretrain-all hooks", "lightly-all callbacks")
    command = [sys.executable, str(SOAK), "--steps", "24", "--only", *rows]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    for row in rows:
        assert f"| {row} | failed" not in output
        assert f"| {row} | " in output
