"""Content-blind masks: uniform random, regular grid, blocks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from .._check import check_bool, check_int, check_number
from .base import Grid, Masking


class RandomMasking(Masking):
    """Uniform random masks, as MAE draws them (He et al., 2022).

    Uses one ``torch.rand(B, U)`` and keeps the smallest, so that under the same seed it
    equals mmpretrain's and MAE's own random masking bit for bit.
    See :class:`Masking` for arguments and errors.
    """

    depends_on_images = False

    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
    ) -> Tensor:
        return noise


class GridMasking(Masking):
    """Regular grid masks: visible units are spread evenly ("grid" of MAE, figure 6).

    Units are ranked by an ordered-dither (Bayer) matrix. At ``mask_ratio`` 0.75 that keeps
    one unit of every 2 x 2; other ratios give the nearest regular pattern with the exact
    count.

    Args:
        random_shift: Shift the pattern cyclically by a random offset per image. If False,
            all masks are equal. Default: True.
        **settings: Those of :class:`Masking`.
    """

    depends_on_images = False

    def __init__(self, *, random_shift: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.random_shift = check_bool("random_shift", random_shift)

    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
    ) -> Tensor:
        rows, cols = grid
        size = 2 ** math.ceil(math.log2(max(rows, cols, 2)))
        pattern = _bayer_matrix(size, noise.device)
        row = torch.arange(rows, device=noise.device).expand(len(noise), rows)
        col = torch.arange(cols, device=noise.device).expand(len(noise), cols)
        if self.random_shift:
            # Fresh numbers: a grid of one unit has too little noise for two offsets.
            shift = torch.rand(2, len(noise), 1, device=noise.device, generator=generator)
            row = (row + (shift[0] * rows).long()) % rows
            col = (col + (shift[1] * cols).long()) % cols
        return pattern[row[:, :, None], col[:, None, :]].flatten(1)


class BlockMasking(Masking):
    """Removed units form rectangles, in the manner of BEiT (Bao et al., 2022, algorithm 1).

    Rectangles are drawn with area uniform and aspect ratio log-uniform until enough units are
    covered; the last one is cut row by row so that the count is exact. All images at once:
    one comparison per rectangle, no loop over images.

    The masks are not BEiT's: its areas range to the number of units still missing, and a
    rectangle that would exceed it is drawn anew, ours range to the number to be removed, and
    the last is cut. So rectangles are larger and border and centre less different. On 14 x 14
    with 75 removed, 2,000 masks: the centre is removed in 73 % of the masks (BEiT 78 %), the
    middle of a side in 19 (12), a corner in 5 (1). For BEiT's own use its generator.

    Args:
        min_units: Smallest rectangle, in units. Default: 4 (BEiT's default in mmpretrain).
        min_aspect: Smallest ratio of height to width, in (0, 1]; the largest is its
            inverse. Default: 0.3.
        **settings: Those of :class:`Masking`.

    Raises:
        ValueError: If an argument is out of range.
    """

    depends_on_images = False
    NUM_RECTANGLES = 32  # covers 99 % of a 14 x 14 grid; what is left is filled at random

    def __init__(self, *, min_units: int = 4, min_aspect: float = 0.3, **settings: Any) -> None:
        super().__init__(**settings)
        self.min_units = check_int("min_units", min_units)
        self.min_aspect = check_number("min_aspect", min_aspect)
        if not 0.0 < self.min_aspect <= 1.0:
            raise ValueError(f"min_aspect must be in (0, 1], got {min_aspect}")

    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
    ) -> Tensor:
        rows, cols = grid
        device = noise.device
        num_mask = rows * cols - num_keep
        draws = torch.rand(4, len(noise), self.NUM_RECTANGLES, device=device, generator=generator)
        smallest = min(self.min_units, num_mask)
        area = smallest + draws[0] * (num_mask - smallest)
        aspect = torch.exp((2 * draws[1] - 1) * math.log(1 / self.min_aspect))
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, cols)
        top = (draws[2] * (rows - height + 1)).floor()
        left = (draws[3] * (cols - width + 1)).floor()

        row = torch.arange(rows, device=device)[:, None]
        col = torch.arange(cols, device=device)[:, None]
        in_rows = (row >= top[:, None]) & (row < (top + height)[:, None])  # (B, rows, R)
        in_cols = (col >= left[:, None]) & (col < (left + width)[:, None])  # (B, cols, R)
        covered = (in_rows[:, :, None] & in_cols[:, None]).flatten(1, 2)  # (B, U, R)
        # The rectangle that covers a unit first; argmax finds the first maximum.
        first = covered.to(torch.uint8).argmax(dim=2)
        first = torch.where(covered.any(dim=2), first, self.NUM_RECTANGLES)
        # The last rectangle is cut from above or from below, else masks would lean upwards.
        raster = torch.arange(rows * cols, device=device) / (rows * cols)
        from_above = torch.rand(len(noise), 1, device=device, generator=generator) < 0.5
        raster = torch.where(from_above, raster, 1 - raster)
        within = torch.where(first < self.NUM_RECTANGLES, raster, noise)
        return -(first + within)  # covered early = removed first = largest rank


def _bayer_matrix(size: int, device: torch.device) -> Tensor:
    """Ordered-dither ranks of a ``size`` x ``size`` grid, ``size`` a power of two."""
    matrix = torch.zeros(1, 1, device=device)
    while len(matrix) < size:
        blocks = [[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]]
        matrix = torch.cat([torch.cat(line, dim=1) for line in blocks], dim=0)
    return matrix
