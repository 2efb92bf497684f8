"""What was measured while a model trained: kept, written down, drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ._figure import new_figure


class History:
    """Figures of a run: a list for checkpoints, and a file of JSON lines.

    Args:
        name: Of the file, ``<name>.jsonl``.

    Attributes:
        entries: Dicts of ``step`` (epochs or iterations), ``iter`` and the figures.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: list[dict[str, Any]] = []

    def add(
        self, figures: dict[str, Any], step: int, iteration: int, folder: Path | None
    ) -> dict[str, float]:
        """Keep figures, write them as a line of the file, and return the numbers among them.

        Args:
            figures: Numbers, and curves as lists of numbers.
            step: When, in the unit of the run's intervals.
            iteration: When, in iterations.
            folder: Of the file, made if need be; None: no file.
        """
        self.entries.append({"step": step, "iter": iteration, **figures})
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{self.name}.jsonl").open("a") as file:
                file.write(json.dumps(self.entries[-1]) + "\n")
        return {name: value for name, value in figures.items() if not isinstance(value, list)}

    def draw(self, unit: str = "epoch") -> Any:
        """:func:`plot_history` of all entries."""
        return plot_history(self.entries, unit)


def plot_history(entries: Sequence[dict[str, Any]], unit: str = "epoch") -> Any:
    """One panel per figure: numbers against the step, curves on top of each other.

    Args:
        entries: Of :class:`History`.
        unit: What ``step`` counts. Default: ``"epoch"``.

    Returns:
        A ``matplotlib.figure.Figure``. Curves are darker the later.

    Raises:
        ValueError: If there is nothing to plot.
        ImportError: If matplotlib is not installed.
    """
    names = [key for key in dict.fromkeys(key for e in entries for key in e)][2:]
    if not names:
        raise ValueError("entries must have a figure to plot, got none")
    figure, axes = new_figure(-(-len(names) // 4), min(len(names), 4))
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        having = [entry for entry in entries if name in entry]
        steps = [entry["step"] for entry in having]
        values = [entry[name] for entry in having]
        title = name.replace("_", " ")
        axis.grid(alpha=0.3)
        if not isinstance(values[-1], list):
            axis.plot(steps, values, marker="o", markersize=3)
            axis.set(xlabel=unit, ylabel=title)
            if min(values) > 0:
                axis.set_ylim(0, None)
            continue
        for index, (step, curve) in enumerate(zip(steps, values, strict=True)):
            shade = 0.8 * (1 - (index + 1) / len(values))
            ends = index in (0, len(values) - 1)
            axis.semilogy(
                range(1, len(curve) + 1),
                torch.tensor(curve, dtype=torch.float64).clamp(min=1e-12).tolist(),
                color=(shade, shade, 1.0 - 0.5 * (1 - shade)),
                linewidth=1.6 if ends else 0.8,
                label=f"{unit} {step}" if ends else None,
            )
        axis.set(xlabel="index", ylabel=title)
        # A feature matrix of n rows of rank < n has zeros at the end, of no interest.
        axis.set_ylim(1e-5, 1) if name == "singular_spectrum" else None
        axis.legend()
    return figure
