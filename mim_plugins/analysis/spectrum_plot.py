"""Effective rank and singular spectra over training, as in U-MAE, figures 1b and 1c."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._figure import new_figure
from .spectrum import effective_rank, singular_spectrum


def plot_spectra(
    steps: Sequence[int],
    ranks: Sequence[float],
    spectra: Sequence[Tensor | Sequence[float]],
    unit: str = "epoch",
) -> Any:
    """Effective rank against the step, and every spectrum, darker the later.

    Args:
        steps: When each was taken.
        ranks: As :func:`~mim_plugins.analysis.effective_rank` returns them.
        spectra: As :func:`~mim_plugins.analysis.singular_spectrum` returns them.
        unit: What ``steps`` counts. Default: ``"epoch"``.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: If there is nothing to plot, or the numbers of arguments differ.
        ImportError: If matplotlib is not installed.
    """
    if not spectra or not len(steps) == len(ranks) == len(spectra):
        raise ValueError(
            "steps, ranks and spectra must be equally many, and at least one, got "
            f"{len(steps)}, {len(ranks)} and {len(spectra)}"
        )
    values = [torch.as_tensor(spectrum, dtype=torch.float64) for spectrum in spectra]
    figure, axes = new_figure(1, 2)
    left, right = axes[0]
    left.plot(list(steps), list(ranks), marker="o", markersize=3)
    left.set(xlabel=unit, ylabel="effective rank", ylim=(0, None))
    for index, (step, spectrum) in enumerate(zip(steps, values, strict=True)):
        shade = 0.8 * (1 - (index + 1) / len(values))
        ends = index in (0, len(values) - 1)
        right.semilogy(
            range(1, len(spectrum) + 1),
            spectrum.clamp(min=1e-12).tolist(),
            color=(shade, shade, 1.0 - 0.5 * (1 - shade)),
            linewidth=1.6 if ends else 0.8,
            label=f"{unit} {step}" if ends else None,
        )
    # A feature matrix of n rows of rank < n has zeros at the end, of no interest.
    right.set(xlabel="singular value", ylabel="share of their sum", ylim=(1e-5, 1))
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return figure


def record_spectrum(
    history: list[dict[str, Any]], features: Tensor, step: int, iteration: int, folder: Path
) -> float:
    """Rank and spectrum of ``features (B, D)``, added to ``history`` and to a file.

    The file is ``singular_spectrum.jsonl`` in ``folder``, an entry a line. Returns the rank.
    """
    rank = effective_rank(features)
    entry = {
        "step": step,
        "iter": iteration,
        "effective_rank": rank,
        "singular_spectrum": singular_spectrum(features).tolist(),
    }
    history.append(entry)
    with (folder / "singular_spectrum.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return rank


def plot_history(history: Sequence[dict[str, Any]], unit: str = "epoch") -> Any:
    """:func:`plot_spectra` of the entries of :func:`record_spectrum`."""
    return plot_spectra(
        [entry["step"] for entry in history],
        [entry["effective_rank"] for entry in history],
        [entry["singular_spectrum"] for entry in history],
        unit,
    )
