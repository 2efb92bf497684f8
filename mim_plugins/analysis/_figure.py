"""Matplotlib, imported when a plot is asked for and not before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._versions import importing


def new_figure(rows: int, cols: int) -> tuple[Any, Any]:
    """A figure with ``(rows, cols)`` axes, independent of pyplot and its backend.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    with importing("plots need matplotlib"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(4.2 * cols, 3.2 * rows), layout="constrained")
    return figure, figure.subplots(rows, cols, squeeze=False)


def picture_grid(columns: Sequence[tuple[str, Tensor]]) -> tuple[Any, Any]:
    """Named columns of RGB images ``(B, 3, H, W)``, clipped to [0, 1], one image per row.

    Returns:
        As :func:`new_figure`.
    """
    rows = len(columns[0][1])
    figure, axes = new_figure(rows, len(columns))
    figure.set_size_inches(1.7 * len(columns), 1.7 * rows + 0.3)
    for column, (title, images) in zip(axes.T, columns, strict=True):
        column[0].set_title(title, fontsize=8)
        for axis, image in zip(column, images, strict=True):
            axis.imshow(image.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            axis.axis("off")
    return figure, axes
