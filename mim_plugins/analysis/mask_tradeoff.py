"""Mask graphs over all mask ratios: the trade-off of U-MAE's section 4.2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._figure import new_figure
from .mask_graph import MAX_VIEWS, mask_graph


@dataclass(frozen=True, eq=False)
class MaskTradeoff:
    """Exact quantities of the graphs at the R = n - 1 mask ratios of n patches.

    All are ``(R,)`` float64; see :class:`~mim_plugins.analysis.mask_graph.MaskGraph`.

    Attributes:
        mask_ratio: ρ = 1/n, ..., (n-1)/n.
        label_error: α1, of the input view.
        target_label_error: α2, of the target view.
        class_mixing: Probability that neighbours in the augmentation graph differ in label.
        residual: Sum of λ_i^2 over i > dim.
        components: Number of connected components.
        target_links_intra, target_links_inter: Probability to step to another image of the
            same class, and of another class, through a shared target view.
        input_links_intra, input_links_inter: The same through a shared input view.
    """

    mask_ratio: Tensor
    label_error: Tensor
    target_label_error: Tensor
    class_mixing: Tensor
    residual: Tensor
    components: Tensor
    target_links_intra: Tensor
    target_links_inter: Tensor
    input_links_intra: Tensor
    input_links_inter: Tensor


@torch.no_grad()
def mask_tradeoff(
    images: Tensor,
    labels: Tensor,
    dim: int,
    positions: bool = True,
    probabilities: Tensor | None = None,
    max_views: int = MAX_VIEWS,
) -> MaskTradeoff:
    """Build the mask graph at every mask ratio and measure it.

    Args:
        images, labels, positions, probabilities, max_views: See
            :func:`~mim_plugins.analysis.mask_graph.mask_graph`, which names the errors too.
        dim: k, the number of feature dimensions, at least 1.
    """
    num_patches = images.shape[1]
    rows = []
    for num_masked in range(1, num_patches):
        ratio = num_masked / num_patches
        graph = mask_graph(images, labels, ratio, positions, probabilities, max_views)
        rows.append(
            (
                ratio,
                graph.label_error,
                graph.target_label_error,
                graph.class_mixing,
                graph.residual(dim),
                graph.num_components,
                *graph.links("target"),
                *graph.links("input"),
            )
        )
    table = torch.tensor(rows, dtype=torch.float64)
    return MaskTradeoff(*table.unbind(dim=1))


def plot_mask_tradeoff(tradeoffs: Mapping[str, MaskTradeoff]) -> Any:
    """Label errors, residual and links against the mask ratio, one row per named sweep.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``tradeoffs`` is empty.
    """
    if not tradeoffs:
        raise ValueError("tradeoffs must name at least one sweep")
    figure, axes = new_figure(len(tradeoffs), 4)
    for row, (name, sweep) in zip(axes, tradeoffs.items(), strict=True):
        ratios = sweep.mask_ratio.tolist()
        panels = {
            "label error": {
                "input view, α1": (sweep.label_error, "o-"),
                "target view, α2": (sweep.target_label_error, "s-"),
            },
            "neighbours that differ in label": {
                "exact": (sweep.class_mixing, "o-"),
                "bound 2(α1 + α2)": (2 * (sweep.label_error + sweep.target_label_error), "--"),
                "2α1, Eq. 30 as printed": (2 * sweep.label_error, ":"),
            },
            "residual eigenvalues, sum of squares": {"": (sweep.residual, "o-")},
            "chance to reach another image": {
                "shared input, same class": (sweep.input_links_intra, "C0o-"),
                "shared input, other class": (sweep.input_links_inter, "C0o--"),
                "shared target, same class": (sweep.target_links_intra, "C1s-"),
                "shared target, other class": (sweep.target_links_inter, "C1s--"),
            },
        }
        for axis, (title, lines) in zip(row, panels.items(), strict=True):
            for label, (line, style) in lines.items():
                axis.plot(ratios, line.tolist(), style, label=label, markersize=4)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("mask ratio")
            axis.grid(alpha=0.3)
            top = max(line.max().item() for line, _ in lines.values())
            axis.set_ylim(0, max(top, 1e-3) * (1 + 0.12 * len(lines)))  # room for the legend
            if len(lines) > 1:
                axis.legend(fontsize=8, loc="upper center")
        row[0].set_ylabel(name)
    return figure
