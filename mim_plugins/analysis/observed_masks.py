"""The abstraction of masks that a running pipeline really drew."""

from __future__ import annotations

import torch
from torch import Tensor

from .._check import check_int
from ..masking.hierarchy import LatentHierarchy
from .abstraction import QUANTITIES, mask_abstraction


class ObservedMasks:
    """Keeps masks, without looking at them, until their abstraction is asked for.

    Adding a mask computes nothing and does not wait for the device.

    Args:
        limit: Masks to keep, at least 1; later ones are dropped. Default: 1024.
        branching: Of the quadtree over the masks' grid of patches, at least 2. Default: 2.
        hierarchy: Another hierarchy over the patches. Default: the quadtree.

    Raises:
        TypeError, ValueError: If an argument is out of range.

    Example:
        >>> observed = ObservedMasks()
        >>> observed.add(torch.tensor([[[True, False], [False, False]]]))
        >>> report = observed.report()
        >>> report["mask_ratio"], report["height"]
        (0.25, 1.0)
    """

    def __init__(
        self, limit: int = 1024, branching: int = 2, hierarchy: LatentHierarchy | None = None
    ) -> None:
        if hierarchy is not None and not isinstance(hierarchy, LatentHierarchy):
            raise TypeError(f"hierarchy must be a LatentHierarchy or None, got {hierarchy!r}")
        self.limit = check_int("limit", limit)
        self.branching = check_int("branching", branching, 2)
        self.hierarchy = hierarchy
        self._masks: list[Tensor] = []
        self._number = 0

    @property
    def is_full(self) -> bool:
        """Whether further masks would be dropped."""
        return self._number >= self.limit

    def add(self, mask: Tensor) -> None:
        """Keep masks ``(B, rows, columns)``, True or 1 = removed.

        Masks of another grid than the first since the last report are left out.

        Raises:
            ValueError: If ``mask`` has another number of dimensions.
        """
        if mask.ndim != 3:
            raise ValueError(f"mask must have shape (B, rows, columns), got {tuple(mask.shape)}")
        if self._masks and mask.shape[1:] != self._masks[0].shape[1:]:
            return
        mask = mask.detach()[: self.limit - self._number].bool()
        if len(mask):
            self._masks.append(mask)
            self._number += len(mask)

    def report(self) -> dict[str, float]:
        """Means over the kept masks, which are then forgotten.

        Returns:
            ``masks`` (their number), ``mask_ratio``, ``height``, ``lowest``, ``highest`` and
            ``size`` of the located latents (see
            :func:`~mim_plugins.analysis.mask_abstraction`; masks that locate none are left
            out of heights), and ``located_<h>``, the share of the latents of height h that
            are located. Empty if there are no masks.
        """
        if not self._masks:
            return {}
        masks = torch.cat(self._masks)
        self._masks, self._number = [], 0
        grid = (masks.shape[1], masks.shape[2])
        hierarchy = self.hierarchy or LatentHierarchy.quadtree(grid, self.branching)
        found = mask_abstraction(hierarchy, masks.flatten(1))
        located = {
            f"located_{height}": share.item()
            for height, share in enumerate(found.located.mean(dim=0), start=1)
        }
        return {
            "masks": float(len(masks)),
            "mask_ratio": masks.double().mean().item(),
            **{name: getattr(found, name).nanmean().item() for name in QUANTITIES},
            **located,
        }
