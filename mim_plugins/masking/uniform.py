"""Uniform sampling: as many visible units in every window (UM-MAE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from .._check import check_int
from .base import Grid, Masking


class UniformMasking(Masking):
    """The same number of visible units in every window of the grid, at random places.

    Li et al., "Uniform Masking: Enabling MAE Pre-training for Pyramid-based Vision
    Transformers with Locality", arXiv 2205.10063, abstract (uniform sampling): of every
    2 x 2 window one patch is visible, which is random within it. At ``mask_ratio`` 0.75 this
    is that; at other ratios windows differ by one visible unit at most, at random. Written
    from the paper's description; its second stage, which masks some visible patches by mask
    tokens, is the encoder's business and not done here.

    Args:
        window: Side of a window in units; a grid that it does not divide has smaller windows
            at its lower and right edge. Default: 2.
        **settings: Those of :class:`Masking`.

    Example:
        >>> masking = UniformMasking()
        >>> mask = masking(torch.rand(1, 3, 32, 32), mask_ratio=0.75, patch_size=8).mask
        >>> (~mask).view(2, 2, 2, 2).sum(dim=(1, 3)).tolist()  # visible ones per window
        [[1, 1], [1, 1]]
    """

    depends_on_images = False

    def __init__(self, *, window: int = 2, **settings: Any) -> None:
        super().__init__(**settings)
        self.window = check_int("window", window)

    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
    ) -> Tensor:
        (rows, cols), side, device = grid, self.window, noise.device
        row, col = (torch.arange(length, device=device) // side for length in grid)
        windows = (row[:, None] * -(-cols // side) + col).flatten()  # (U,), the window of a unit
        row_sizes, col_sizes = (
            (length - torch.arange(0, length, side, device=device)).clamp(max=side)
            for length in grid
        )
        size = row_sizes.outer(col_sizes).flatten()
        by_window = windows.sort(stable=True).values
        units = torch.arange(rows * cols, device=device)
        place_in_it = units - (size.cumsum(0) - size)[by_window]
        # Units by noise, then by window: a unit's place among those of its window.
        order = noise.argsort(dim=1)
        order = order.gather(1, windows[order].argsort(dim=1, stable=True))
        place = torch.empty_like(order).scatter_(1, order, place_in_it.expand_as(order))
        # Which windows give one more is random.
        turn = torch.rand(len(noise), len(size), device=noise.device, generator=generator)
        return (place + turn[:, windows]) / size[windows]
