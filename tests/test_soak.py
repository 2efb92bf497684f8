"""The benchmark of memory starts in every row that it adds to the table of plugins."""

from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="psutil is not installed")
pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("lightly", reason="lightly is not installed")

from .warm import run_script

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_hooks_and_callbacks_are_trained_together() -> None:
    rows = ("mmpretrain-all hooks", "lightly-all callbacks")
    _, output = run_script(SOAK, "--steps", "4", "--only", *rows)
    for row in rows:
        assert f"| {row} | failed" not in output
        assert f"| {row} | " in output
