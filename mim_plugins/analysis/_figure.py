"""Matplotlib, imported when a plot is asked for and not before."""

from __future__ import annotations

from typing import Any


def new_figure(rows: int, cols: int) -> tuple[Any, Any]:
    """A figure with ``(rows, cols)`` axes, independent of pyplot and its backend.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'mim_plugins[analysis]'") from error
    figure = Figure(figsize=(4.2 * cols, 3.2 * rows), layout="constrained")
    return figure, figure.subplots(rows, cols, squeeze=False)
