"""The self-test passes here, and says so if something does not."""

from __future__ import annotations

import pytest
import torch

from mim_plugins.__main__ import main
from mim_plugins.apps import self_test


def test_everything_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["self-test"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert "all passed" in out
    lines = [line for line in out.splitlines() if line.startswith("cpu ")]
    assert len(lines) >= len(self_test.KERNELS)
    assert all(" ok " in line for line in lines)


def test_what_fails_is_a_row_and_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks that are not those of the reference, and a model whose loss is not finite."""
    first = torch.arange(49).expand(8, -1)
    monkeypatch.setattr(self_test, "greedy_map", lambda L, k, noise: first)
    monkeypatch.setattr(self_test, "find_spec", lambda name: name == "torch")
    broken = torch.nn.Linear(1, 1)
    broken.training_step = lambda batch, index: broken.weight.sum() * torch.nan
    monkeypatch.setattr(self_test, "STEPS", {"torch": {"line": {"stock": lambda size: broken}}})
    assert self_test.main([]) == 1
    out = capsys.readouterr().out
    assert "2 FAILED" in out
    assert "AssertionError: log-determinants differ" in out
    assert "AssertionError: loss nan" in out
