"""benchmarks/hierarchical_sweep.py at the smallest size: it runs, and goes on where it stopped."""

import json
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from .warm import run_script

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "hierarchical_sweep.py"


def run(out: Path, *arguments: str) -> tuple[int, str]:
    small = ["--steps", "2", "--images", "64", "--probe-images", "60", "--dims", "16", "--depth"]
    return run_script(SCRIPT, "--out", out, *small, "1", *arguments, env={"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_runs_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "sweep.png"
    code, output = run(out, "--ratios", "0.75", "--units", "8")
    assert code == 0, output[-3000:]
    assert "| 8 px | 0.75 | 0 px | 2.00 |" in output
    kept = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert list(kept) == ["untrained seed 0", "unit 8 ratio 0.75 width 0 seed 0"]
    trained = kept["unit 8 ratio 0.75 width 0 seed 0"]
    assert trained["control"] < 0.1  # nobody knows the noise of hidden patches
    shares = [trained[f"share_{n}"] for n in ("object", "part", "texture", "patch", "noise")]
    assert min(shares) > 0
    assert sum(shares) > 0.95  # total indices: 1 and the interactions
    assert out.stat().st_size > 10_000

    code, output = run(out, "--ratios", "0.75", "0.9", "--units", "8", "16")
    assert code == 0, output[-3000:]
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert {name: runs[name] for name in kept} == kept  # seconds too: not run again
    # at 0.9 none of the four units of 16 pixels would be visible
    assert len(runs) == 4
    assert "unit 16 ratio 0.9 width 0 seed 0" not in runs

    code, output = run(out, "--steps", "3")
    assert code != 0
    assert "other settings" in output
