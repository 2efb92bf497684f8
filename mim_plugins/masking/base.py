"""What all maskings share: arguments, the grid of masking units, exact counts."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .._check import check_int, check_number
from .._versions import check_versions
from .patch_mask import PatchMask

check_versions(torch)


def check_mask_ratio(mask_ratio: float) -> float:
    """Return ``mask_ratio`` if it is a number in (0, 1), else raise TypeError or ValueError."""
    if not 0.0 < check_number("mask_ratio", mask_ratio) < 1.0:
        raise ValueError(f"mask_ratio must be in (0, 1), got {mask_ratio}")
    return float(mask_ratio)


class Masking(ABC):
    """Base of the mask generators: images in, :class:`PatchMask` out.

    An image is divided into square masking units, each a block of patches that are kept
    or removed together. Of U units exactly ``int(U * (1 - mask_ratio))`` are kept in every
    image, the count of MAE, SimMIM and lightly, whatever the image shows.

    Args:
        mask_ratio: Share of units removed, in (0, 1). Default: 0.75.
        patch_size: Side of the model's patches in pixels. Default: 16.
        mask_unit: Side of a masking unit in pixels, a multiple of ``patch_size``.
            Default: ``patch_size``.

    Raises:
        TypeError: If ``patch_size`` or ``mask_unit`` is no int, or ``mask_ratio`` no number.
        ValueError: If an argument is out of range.

    Attributes:
        num_masks: Masks per image. B images get a :class:`PatchMask` of ``num_masks * B``
            rows in the order of ``images.repeat(num_masks, 1, 1, 1)``.
    """

    num_masks: int = 1

    def __init__(
        self, mask_ratio: float = 0.75, patch_size: int = 16, mask_unit: int | None = None
    ) -> None:
        self.mask_ratio = check_mask_ratio(mask_ratio)
        self.patch_size = check_int("patch_size", patch_size)
        if mask_unit is None:
            mask_unit = patch_size
        self.mask_unit = check_int("mask_unit", mask_unit)
        if mask_unit % patch_size:
            raise ValueError(
                f"mask_unit must be a multiple of patch_size={patch_size}, got {mask_unit}"
            )

    def __repr__(self) -> str:
        args = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({args})"

    @abstractmethod
    def scores(
        self,
        images: Tensor,
        grid: tuple[int, int],
        num_keep: int,
        noise: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Rank the masking units: the ``num_keep`` smallest scores are kept.

        Args:
            images: ``(B, C, H, W)``.
            grid: Rows and columns of masking units, U in all.
            num_keep: Units to keep per image.
            noise: ``(B, U)`` float32, uniform in [0, 1), on the images' device.
            generator: For further random numbers, if any are needed.

        Returns:
            ``(B, U)`` scores without NaN.
        """

    def count(self, height: int, width: int) -> tuple[tuple[int, int], int]:
        """Rows and columns of masking units of an image, and how many of them are kept.

        Raises:
            ValueError: If the image is not divisible into units, or none or all would be kept.
        """
        if height % self.mask_unit or width % self.mask_unit:
            raise ValueError(
                f"image height and width must be multiples of mask_unit={self.mask_unit}, "
                f"got {height} x {width}"
            )
        rows, cols = height // self.mask_unit, width // self.mask_unit
        num_keep = int(rows * cols * (1 - self.mask_ratio))
        if num_keep < 1:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} keeps none of the {rows * cols} masking units of "
                f"a {height} x {width} image; lower it or use smaller units"
            )
        if num_keep == rows * cols:  # 1 - mask_ratio is 1 in floats
            raise ValueError(
                f"mask_ratio={self.mask_ratio} removes none of the {rows * cols} masking units of "
                f"a {height} x {width} image; raise it"
            )
        return (rows, cols), num_keep

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> PatchMask:
        """Draw one mask per image.

        Args:
            images: ``(B, C, H, W)``, any floating dtype; H and W multiples of
                ``mask_unit``.
            generator: Source of randomness, on the images' device. Default: torch's own.
            noise: ``(B, U)`` uniform random numbers to use instead of drawing them, so that
                a caller can consume the random stream exactly as a stock pipeline does.

        Raises:
            TypeError: If ``images`` is no tensor.
            ValueError: If the image is not divisible into units, no unit would be kept, or
                ``noise`` has the wrong shape.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
        if images.ndim != 4:
            raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}")
        batch, _, height, width = images.shape
        grid, num_keep = self.count(height, width)
        units = grid[0] * grid[1]
        if noise is None:
            noise = torch.rand(batch, units, device=images.device, generator=generator)
        elif noise.shape != (batch, units):
            raise ValueError(f"noise must have shape {(batch, units)}, got {tuple(noise.shape)}")
        scores = self.scores(images, grid, num_keep, noise, generator)
        mask = PatchMask.from_scores(scores, num_keep)
        side = self.mask_unit // self.patch_size
        return mask if side == 1 else _units_to_patches(mask, grid, side)


def _units_to_patches(mask: PatchMask, grid: tuple[int, int], side: int) -> PatchMask:
    """Replace every masking unit by its ``side`` x ``side`` patches."""
    rows, cols = grid
    patches = torch.arange(rows * cols * side**2, device=mask.ids_shuffle.device)
    patches_of_unit = (
        patches.view(rows, side, cols, side).transpose(1, 2).reshape(rows * cols, side**2)
    )
    ids_shuffle = patches_of_unit[mask.ids_shuffle].flatten(1)
    return PatchMask(ids_shuffle, mask.num_keep * side**2)
