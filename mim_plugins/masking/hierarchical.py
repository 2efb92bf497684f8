"""Masks that follow a given latent hierarchy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from .._check import check_int
from .base import Grid, Masking
from .hierarchy import LatentHierarchy


class HierarchicalMasking(Masking):
    """Remove all that some latents of a hierarchy show, not patches one by one.

    Kong et al., "Understanding Masked Autoencoders via Hierarchical Latent Variable
    Models", CVPR 2023, section 3.6: masks may be designed by the latent structure. The
    paper gives no algorithm; this is ours. Latents of height ``level`` are taken in random
    order and their patches removed until the count is reached; the patches of the last one
    are removed in the same way by its latents one lower, and so on. In a tree, at most one
    of the latents that a mask locates then lies at ``level`` or below.

    Where a patch has several ancestors of one height, the first of them to be taken
    removes it. A patch without an ancestor of a height counts as a latent of its own.

    Args:
        hierarchy: A :class:`~mim_plugins.analysis.LatentHierarchy` whose observables are
            the image's masking units in row-major order, or the arguments of
            ``LatentHierarchy.quadtree``, e.g. ``dict(grid=(14, 14), branching=2)``.
        level: Height of the latents whose patches are removed together, below the height
            of the hierarchy; 0 is random masking bit for bit. Default: 2.
        **settings: Those of :class:`Masking`.

    Raises:
        TypeError: If ``hierarchy`` is neither.
        ValueError: If an argument is out of range.

    Example:
        >>> masking = HierarchicalMasking(dict(grid=(4, 4)), level=1)
        >>> mask = masking(torch.rand(1, 3, 32, 32), patch_size=8).mask.view(2, 2, 2, 2)
        >>> mask.sum(dim=(1, 3)).unique()  # blocks of 2 x 2 patches: all removed or none
        tensor([0, 4])
    """

    depends_on_images = False

    def __init__(
        self,
        hierarchy: LatentHierarchy | Mapping[str, Any],
        *,
        level: int = 2,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if isinstance(hierarchy, Mapping):
            if "grid" not in hierarchy:
                raise ValueError(f"hierarchy must have a grid, got {hierarchy!r}")
            hierarchy = LatentHierarchy.quadtree(**hierarchy)
        if not isinstance(hierarchy, LatentHierarchy):
            raise TypeError(
                "hierarchy must be a LatentHierarchy or the arguments of "
                f"LatentHierarchy.quadtree, got {hierarchy!r}"
            )
        if not check_int("level", level, 0) < hierarchy.height:
            raise ValueError(
                f"level must be in 0..{hierarchy.height - 1}, below the hierarchy's height, "
                f"got {level}"
            )
        self.hierarchy = hierarchy
        self.level = level
        for height in range(1, level + 1):
            hierarchy.ancestors_at(height)  # computed now, not while torch.compile traces

    def check_grid(self, grid: Grid) -> None:
        """ValueError unless the hierarchy has one observable per masking unit."""
        (rows, cols), num = grid, len(self.hierarchy.observables)
        if self.hierarchy.grid not in (None, (rows, cols)) or num != rows * cols:
            raise ValueError(
                f"hierarchy must have one observable per masking unit, {rows} x {cols}, got "
                f"{self.hierarchy.grid or num}"
            )

    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
    ) -> Tensor:
        if self.level == 0:
            return noise
        # Sort by the latents of height 1, 2, ...: the last sort weighs most.
        order = noise.argsort(dim=1)
        for height in range(1, self.level + 1):
            key = self._key(height, noise, generator).gather(1, order)
            order = order.gather(1, key.argsort(dim=1, stable=True))
        ranks = torch.arange(noise.shape[1], device=noise.device, dtype=noise.dtype)
        return torch.empty_like(noise).scatter_(1, order, ranks.expand_as(noise))

    def _key(self, height: int, noise: Tensor, generator: Generator | None) -> Tensor:
        """``(B, U)``: the largest random number of a unit's ancestors of this height."""
        above = self.hierarchy.ancestors_at(height, noise.device)  # (U, P)
        latents = self.hierarchy.number_at(height)
        of_latent = torch.rand(len(noise), latents, device=noise.device, generator=generator)
        none = of_latent.new_full((len(noise), 1), -1.0)
        largest = torch.cat([of_latent, none], dim=1)[:, above].amax(dim=2)
        return torch.where(largest >= 0, largest, noise)
