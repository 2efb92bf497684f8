"""Stock reconstruction heads that neglect the boundary of the masked region."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule
from mmpretrain.models.heads import MAEPretrainHead, SimMIMHead
from mmpretrain.models.losses import PixelReconstructionLoss
from mmpretrain.registry import MODELS
from torch import Tensor

from ..._pixels import patchify
from ...regularizers.boundary import boundary_weights, check_boundary, weighted_mean


class _Boundary(BaseModule):
    """``width_px`` and ``boundary_weight`` for a head."""

    def __init__(
        self, *args: Any, width_px: int = 0, boundary_weight: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_boundary(width_px, boundary_weight)
        if not isinstance(self.loss_module, PixelReconstructionLoss):
            raise TypeError(
                "loss must be a PixelReconstructionLoss, whose errors can be weighted pixel by "
                f"pixel, got {type(self.loss_module).__name__}"
            )
        self.width_px = width_px
        self.boundary_weight = boundary_weight


@MODELS.register_module()
class BoundaryMAEHead(_Boundary, MAEPretrainHead):
    """Stock ``MAEPretrainHead`` whose loss neglects boundary pixels.

    Kong et al., CVPR 2023, section 3.6; see
    :func:`mim_plugins.regularizers.boundary_weights`. The loss is the mean error of the
    pixels that count. With ``width_px=0`` it is the stock loss bit for bit.

    Args:
        *args, **kwargs: Those of ``MAEPretrainHead``.
        width_px (int): Width of the boundary in pixels. Defaults to 0.
        boundary_weight (float): Weight of boundary pixels, in [0, 1]. Defaults to 0,
            ignored.

    Raises:
        TypeError: If ``loss`` is no ``PixelReconstructionLoss``.
        ValueError: If ``width_px`` or ``boundary_weight`` is out of range.
    """

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """``pred`` ``(B, N, p * p * C)``, images ``(B, C, H, W)``, ``mask`` ``(B, N)``."""
        if not self.width_px:
            return super().loss(pred, target, mask)
        side = self.patch_size
        grid = (target.shape[2] // side, target.shape[3] // side)
        weights = boundary_weights(
            mask, grid, side, self.width_px, boundary_weight=self.boundary_weight
        )
        weights = patchify(weights[:, None], side)[..., None]  # (B, N, p * p, 1)
        error = self.loss_module.penalty(pred, self.construct_target(target))
        error = error.unflatten(2, (side * side, self.in_channels))
        return weighted_mean(error, weights) / self.loss_module.channel


@MODELS.register_module()
class BoundarySimMIMHead(_Boundary, SimMIMHead):
    """Stock ``SimMIMHead`` whose loss neglects boundary pixels.

    See :class:`BoundaryMAEHead` for what is neglected and for errors. SimMIM masks units of
    32 pixels: a width of 8 leaves their inner quarter even where all neighbours are visible.

    Args:
        *args, **kwargs: Those of ``SimMIMHead``.
        width_px (int): Width of the boundary in pixels. Defaults to 0.
        boundary_weight (float): Weight of boundary pixels, in [0, 1]. Defaults to 0.
    """

    def loss(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """``pred`` and images ``(B, C, H, W)``, ``mask`` ``(B, rows, columns)``."""
        if not self.width_px:
            return super().loss(pred, target, mask)
        grid = (mask.shape[1], mask.shape[2])
        weights = boundary_weights(
            mask, grid, self.patch_size, self.width_px, boundary_weight=self.boundary_weight
        )
        error = self.loss_module.penalty(pred, target)
        # The stock loss sums over channels and then divides by its own ``channel``.
        mean = weighted_mean(error, weights[:, None])
        return mean * (error.shape[1] / self.loss_module.channel)
