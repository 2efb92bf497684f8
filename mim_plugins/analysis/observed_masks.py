"""The abstraction of masks that a running pipeline really drew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._check import check_int
from .._pixels import unit_range
from .._tensor import check_shape
from ..masking.hierarchy import LatentHierarchy
from .abstraction import QUANTITIES, mask_abstraction
from .reconstruction import SMALLEST_IMAGE, reconstruction_scores

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor] | None]


class ObservedMasks:
    """Keeps masks, without looking at them, until their abstraction is asked for.

    Adding a mask computes nothing and does not wait for the device.

    Args:
        num_masks: Masks to keep, at least 1; later ones are dropped. Default: 1024.
        branching: Of the quadtree over the masks' grid of patches, at least 2. Default: 2.
        hierarchy: Another hierarchy over the patches. Default: the quadtree.
        num_images: Images to reconstruct per report, at most those first given; 0 = none.
            Default: 0.

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
        self,
        num_masks: int = 1024,
        branching: int = 2,
        hierarchy: LatentHierarchy | None = None,
        num_images: int = 0,
    ) -> None:
        if hierarchy is not None and not isinstance(hierarchy, LatentHierarchy):
            raise TypeError(f"hierarchy must be a LatentHierarchy or None, got {hierarchy!r}")
        self.num_masks = check_int("num_masks", num_masks)
        self.branching = check_int("branching", branching, 2)
        self.hierarchy = hierarchy
        self.num_images = check_int("num_images", num_images, 0)
        self._images: Tensor | None = None
        self._masks: list[Tensor] = []
        self._number = 0

    @property
    def is_full(self) -> bool:
        """Whether further masks would be dropped."""
        return self._number >= self.num_masks

    def add(self, mask: Tensor, images: Tensor | None = None) -> None:
        """Keep masks ``(B, rows, columns)``, True or 1 = removed, and the first images.

        Masks of another grid than the first since the last report are left out.

        Raises:
            ValueError: If ``mask`` has another number of dimensions.
        """
        check_shape("mask", mask, "B", "rows", "columns")
        if self._images is None and images is not None:
            self._images = images[: self.num_images].detach()
        if self._masks and mask.shape[1:] != self._masks[0].shape[1:]:
            return
        mask = mask.detach()[: self.num_masks - self._number].bool()
        if len(mask):
            self._masks.append(mask)
            self._number += len(mask)

    def report(self, reconstruct: Reconstruct | None = None) -> dict[str, float]:
        """Means over the kept masks and images, which are then forgotten.

        Args:
            reconstruct: From images ``(B, C, H, W)`` to reconstruction and image, both with
                the normalisation undone, or None. Called with those of at least 16 pixels a
                side. Default: images are not scored.

        Returns:
            ``masks`` (their number), ``mask_ratio``, ``height``, ``lowest``, ``highest`` and
            ``size`` of the located latents (see
            :func:`~mim_plugins.analysis.mask_abstraction`; masks that locate none are left
            out of heights), and ``located_<h>``, the share of the latents of height h that
            are located; these only if there are masks. And the means of
            :func:`~mim_plugins.analysis.reconstruction_scores`, if there are images and
            reconstructions.
        """
        kept, self._masks, self._number = self._masks, [], 0
        images, self._images = self._images, None
        figures: dict[str, float] = {}
        if kept:
            masks = torch.cat(kept)
            rows, columns = masks.shape[1:]
            hierarchy = self.hierarchy or LatentHierarchy.quadtree((rows, columns), self.branching)
            found = mask_abstraction(hierarchy, masks.flatten(1))
            figures = {"masks": float(len(masks)), "mask_ratio": masks.double().mean().item()}
            figures |= {name: getattr(found, name).nanmean().item() for name in QUANTITIES}
            for height, share in enumerate(found.located.mean(dim=0).tolist(), start=1):
                figures[f"located_{height}"] = share
        if images is None or not len(images) or min(images.shape[2:]) < SMALLEST_IMAGE:
            return figures
        if reconstruct is not None and (pair := reconstruct(images)) is not None:
            original, predicted = unit_range(pair[1], pair[0])
            scores = reconstruction_scores(predicted, original)
            figures |= {name: value.mean().item() for name, value in scores.items()}
        return figures
