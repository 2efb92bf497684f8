"""Several masks per image whose visible sets do not overlap (MI-MAE)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from .._check import check_bool, check_int
from .base import Grid, Layout, Masking, agree
from .dpp import SMALLEST_GAIN, DPPMasking, choose_sets

_TOLERANCE = 1e-9  # of num_masks * (1 - mask_ratio), e.g. 3 * (1 - 2 / 3) > 1 in floats


class ComplementaryMasking(Masking):
    """``num_masks`` masks per image, every unit visible in at most one of them (MI-MAE).

    "Learning Mask Invariant Mutual Information for Masked Image Modeling", arXiv
    2502.19718, uses four such masks at ratio 0.75. If ``num_masks * (1 - mask_ratio)``
    is 1, every unit is visible exactly once, up to the rounding of ``int(U * (1 -
    mask_ratio))`` kept units per mask; what is left over is visible nowhere.

    The result has ``num_masks * B`` rows: row ``m * B + b`` is mask m of image b, the order
    of ``images.repeat(num_masks, 1, 1, 1)``. The random numbers are those of a single mask
    per image, and ``num_masks=1`` is ``base`` bit for bit: stock random masking by default.

    Args:
        num_masks: Masks per image. Default: 4.
        base: How a single mask is drawn. Default (None): uniformly at random; a random
            permutation is dealt out, each mask by itself is a random mask. With a
            :class:`DPPMasking` (greedy) all masks choose their units as it does, but in
            turns, so that none gets only what the others left over.
        shared: Give all images of a batch the same masks, drawn once. A latent then cannot
            be matched to another one of its image by the positions it has seen, see
            docs/mi-mae.md. Not for DPPs, which depend on the image. Default: False.
        **settings: Those of :class:`Masking`, here or of ``base``.

    Raises:
        TypeError: If ``num_masks`` is no int, or ``base`` no :class:`DPPMasking`.
        ValueError: If the masks cannot be disjoint, that is ``num_masks * (1 - mask_ratio)
            > 1``, here or as soon as the model gives the ratio; if ``base`` disagrees with
            the other arguments or is exact; or an argument is out of range.

    Example:
        >>> masking = ComplementaryMasking(num_masks=4)
        >>> images = torch.rand(2, 3, 64, 64)
        >>> mask = masking(images, mask_ratio=0.75, patch_size=8).mask.view(4, 2, 64)
        >>> (~mask).sum(dim=0).unique()  # every patch is visible once
        tensor([1])
    """

    def __init__(
        self,
        num_masks: int = 4,
        *,
        base: DPPMasking | None = None,
        shared: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.num_masks = check_int("num_masks", num_masks)
        self.shared = check_bool("shared", shared)
        if base is not None:
            if not isinstance(base, DPPMasking):
                raise TypeError(f"base must be a DPPMasking or None (random), got {base!r}")
            if base.tau is None:
                raise ValueError("base must have method='greedy': exact samples cannot take turns")
            if self.shared:
                raise ValueError("shared=True needs base=None: DPP masks depend on the image")
            for name in ("mask_ratio", "patch_size", "mask_unit"):
                setattr(self, name, agree(name, getattr(base, name), getattr(self, name)))
        self.base = base
        if self.mask_ratio is not None:
            self._check_disjoint(self.mask_ratio)

    def _check_disjoint(self, mask_ratio: float) -> None:
        visible = self.num_masks * (1 - mask_ratio)
        if visible > 1 + _TOLERANCE:
            raise ValueError(
                "num_masks * (1 - mask_ratio) must be at most 1 for disjoint visible sets, got "
                f"{self.num_masks} * (1 - {mask_ratio}) = {visible:.4g}"
            )

    def layout(self, height: int, width: int, **model: Any) -> Layout:
        """As :meth:`Masking.layout`; ValueError also if the masks cannot be disjoint."""
        layout = super().layout(height, width, **model)
        self._check_disjoint(layout.mask_ratio)
        return layout

    @property
    def depends_on_images(self) -> bool:
        """Whether the single masks do."""
        return self.base is not None

    @property
    def needs_model(self) -> bool:
        """Whether the single masks do."""
        return self.base is not None and self.base.needs_model

    def with_encoder(self, encode: Callable[[Tensor], Tensor]) -> ComplementaryMasking:
        """As :meth:`Masking.with_encoder`, for the single masks."""
        if self.base is None:
            return self
        bound = copy.copy(self)
        bound.base = self.base.with_encoder(encode)
        return bound

    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
    ) -> Tensor:
        """As :meth:`Masking.scores`, but ``(num_masks * B, U)``."""
        if self.shared:
            noise = noise[:1].expand_as(noise)
        if self.base is None or self.base.tau is None or self.base.tau == 1.0:
            rank = noise.argsort(dim=1).argsort(dim=1)
            starts = range(0, self.num_masks * num_keep, num_keep)
            return torch.cat([(rank - start) % noise.shape[1] for start in starts])

        similarity = self.base.similarity(images, grid)
        threshold = max(self.base.tau, SMALLEST_GAIN)
        kept = choose_sets(similarity, num_keep, threshold, True, noise, self.num_masks)
        order = torch.arange(-num_keep, 0, device=noise.device, dtype=noise.dtype)
        # Each mask: chosen units first, in the order of their choice.
        return noise.repeat(self.num_masks, 1).scatter(1, kept, order.expand_as(kept))
