"""benchmarks/gpu.py at tiny size on the CPU: phases, resumption, time limit and tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("skimage", reason="the photographs are scikit-image's")
pytest.importorskip("lightly", reason="lightly is not installed")

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    sys.modules.pop("gpu", None)
    import gpu

    return gpu


def test_phases_resume_and_are_put_into_tables(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.work("kernels", tmp_path, tiny=True)  # in this process, as its own would
    tiny = ["--tiny", "--out", str(tmp_path), "--only", "kernels", "steps-lightly-simsiam"]
    assert gpu.main(tiny) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert text.count(f"torch {torch.__version__}; tiny models") == 2
    assert "| MixMask |" in text
    assert "FAILED" not in text
    assert "Not measured yet: tests, steps-mmpretrain-mae" in text
    assert (tmp_path / "gpu.png").stat().st_size > 1000
    rows = json.loads((tmp_path / "steps-lightly-simsiam.json").read_text())["rows"]
    assert [row["step"] for row in rows] == ["stock", "MixMask", "stock again"]

    monkeypatch.setattr(gpu, "bounded", lambda command: pytest.fail("measured twice"))
    assert gpu.main(tiny) == 0


def test_a_phase_that_takes_too_long_leaves_nothing(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LIMIT", 0.1)
    assert gpu.main(["--tiny", "--out", str(tmp_path), "--only", "kernels"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.md"]


def test_large_steps_are_goals_or_reported(gpu: Any) -> None:
    assert gpu.LARGE.patches == 196
    names = {name for rows in gpu.STEPS.values() for row in rows.values() for name in row}
    assert set(gpu.GOALS) < names
    assert gpu.GOALS["MixMask"] == pytest.approx(1.8375)


def test_what_does_not_fit_is_a_row(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(size: Any) -> None:
        raise torch.OutOfMemoryError

    stock = gpu.STEPS["lightly"]["SimSiam"]["stock"]
    steps = {"lightly": {"SimSiam": {"stock": stock, "MixMask": too_large}}}
    monkeypatch.setattr(gpu, "STEPS", steps)
    rows = gpu.run_steps("lightly", "SimSiam", tiny=True)
    assert [row["step"] for row in rows] == ["MixMask", "stock", "stock again"]
    assert rows[0]["ms"] == "out of memory"


@pytest.mark.parametrize("framework", ["mmpretrain", "lightly"])
def test_every_phase_of_steps(gpu: Any, framework: str) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    for pipeline, plugins in gpu.STEPS[framework].items():
        rows = gpu.run_steps(framework, pipeline, tiny=True)
        assert [row["step"] for row in rows] == [*plugins, "stock again"]
        assert all(float(row["ms"]) > 0 for row in rows)


@pytest.mark.slow
def test_cifar_is_trained_and_judged(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One variant of one experiment, by mmpretrain's own tool."""
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("a", "b") * 2):
        folder = tmp_path / "data" / ("train" if number < 2 else "test") / name
        folder.mkdir(parents=True)
        for i in range(16):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    command = gpu.cifar_command
    monkeypatch.setattr(
        gpu, "cifar_command", lambda *args: [*command(*args), "--only", "lambda 0.01"]
    )
    monkeypatch.setattr(gpu, "EXPERIMENTS", {"umae": "cifar10"})
    out = tmp_path / "out"
    out.mkdir()
    gpu.work("kernels", out, tiny=True)
    tiny = ["--tiny", "--out", str(out), "--only", "kernels", "--cifar10", str(tmp_path / "data")]
    assert gpu.main(tiny) == 0
    assert "## CIFAR, umae" in (out / "gpu.md").read_text()
    (run,) = json.loads((out / "umae" / "results.json").read_text()).values()
    assert sorted(map(int, run["curve"])) == [1, 2]
