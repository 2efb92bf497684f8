"""What all maskings share: arguments, the grid of masking units, exact counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from .._check import check_fraction, check_int
from .._tensor import check_shape
from .._versions import check_versions
from .patch_mask import PatchMask

check_versions(torch)

Grid = tuple[int, int]  # rows and columns


def agree(name: str, own: Any, given: Any, default: Any = None) -> Any:
    """One value of a setting that a masking and its caller, the model, may both give.

    Raises:
        ValueError: If both do and differ.
    """
    if own is not None and given is not None and own != given:
        raise ValueError(
            f"{name} is {own} in the masking and {given} in what uses it: give it once"
        )
    value = given if own is None else own
    return default if value is None else value


class Layout(NamedTuple):
    """How an image is divided.

    Attributes:
        grid: Rows and columns of masking units, U in all.
        num_keep: Units kept per image.
        side: Side of a unit in patches.
        mask_ratio, patch_size: What holds, the masking's own or the model's.
    """

    grid: Grid
    num_keep: int
    side: int
    mask_ratio: float
    patch_size: int


class Masking(ABC):
    """Base of the mask generators: images in, :class:`PatchMask` out.

    An image is divided into square masking units, each a block of patches that are kept
    or removed together. Of U units exactly ``int(U * (1 - mask_ratio))`` are kept in every
    image, the count of MAE, SimMIM and lightly, whatever the image shows.

    Ratio and patch size are the model's, which hands them over with every call. Who calls a
    masking alone may give them here or there; without any they are 0.75 and 16.

    Args:
        mask_ratio: Share of units removed, in (0, 1). Default (None): the model's.
        patch_size: Side of the model's patches in pixels. Default (None): the model's.
        mask_unit: Side of a masking unit in pixels, a multiple of the patch size.
            Default (None): the patch size.

    Raises:
        TypeError: If ``patch_size`` or ``mask_unit`` is no int, or ``mask_ratio`` no number.
        ValueError: If an argument is out of range.

    Attributes:
        num_masks: Masks per image. B images get a :class:`PatchMask` of ``num_masks * B``
            rows in the order of ``images.repeat(num_masks, 1, 1, 1)``.
    """

    num_masks: int = 1

    @property
    def depends_on_images(self) -> bool:
        """Whether the masks are chosen by what the images show."""
        return True

    @property
    def needs_model(self) -> bool:
        """Whether they are chosen by features of a network: not in a data pipeline."""
        return False

    def with_encoder(self, encode: Callable[[Tensor], Tensor]) -> Masking:
        """This masking for a model, which tells it how to encode; itself unless it asks.

        Args:
            encode: From images ``(B, C, H, W)`` to the tokens ``(B, N, D)`` of their patches,
                row-major, whole images, without a trace in the model. It should look the
                model's encoder up when called, so that copies and pickles of a model keep
                to themselves.
        """
        return self

    def __init__(
        self,
        *,
        mask_ratio: float | None = None,
        patch_size: int | None = None,
        mask_unit: int | None = None,
    ) -> None:
        self.mask_ratio = None if mask_ratio is None else check_fraction("mask_ratio", mask_ratio)
        self.patch_size = None if patch_size is None else check_int("patch_size", patch_size)
        self.mask_unit = None if mask_unit is None else check_int("mask_unit", mask_unit)
        if patch_size is not None and mask_unit is not None:
            _side(mask_unit, patch_size)

    def __repr__(self) -> str:
        args = ", ".join(
            f"{key}={value!r}"
            for key, value in vars(self).items()
            if value is not None and not key.startswith("_")
        )
        return f"{type(self).__name__}({args})"

    @abstractmethod
    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
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

    def check_grid(self, grid: Grid) -> None:  # noqa: B027
        """ValueError unless masks of so many rows and columns of units can be drawn."""

    def layout(
        self,
        height: int,
        width: int,
        *,
        mask_ratio: float | None = None,
        patch_size: int | None = None,
    ) -> Layout:
        """How an image of this size is divided, and how many of its units are kept.

        Args:
            height, width: In pixels.
            mask_ratio, patch_size: The model's. Default (None): the masking's own, else
                0.75 and 16.

        Raises:
            ValueError: If model and masking disagree, the image is not divisible into
                units, or none or all would be kept.
        """
        ratio = check_fraction("mask_ratio", agree("mask_ratio", self.mask_ratio, mask_ratio, 0.75))
        patch = check_int("patch_size", agree("patch_size", self.patch_size, patch_size, 16))
        unit = patch if self.mask_unit is None else self.mask_unit
        side = _side(unit, patch)
        if height % unit or width % unit:
            raise ValueError(
                f"image height and width must be multiples of mask_unit={unit}, got "
                f"{height} x {width}"
            )
        grid = height // unit, width // unit
        try:
            self.check_grid(grid)
        except ValueError as error:
            raise ValueError(f"{error} by mask_unit={unit}, patch_size={patch}") from None
        units = grid[0] * grid[1]
        num_keep = int(units * (1 - ratio))
        if num_keep < 1:
            raise ValueError(
                f"mask_ratio={ratio} keeps none of the {units} masking units of a {height} x "
                f"{width} image; lower it or use smaller units"
            )
        if num_keep == units:  # 1 - mask_ratio is 1 in floats
            raise ValueError(
                f"mask_ratio={ratio} removes none of the {units} masking units of a {height} x "
                f"{width} image; raise it"
            )
        return Layout(grid, num_keep, side, ratio, patch)

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        *,
        mask_ratio: float | None = None,
        patch_size: int | None = None,
        generator: Generator | None = None,
        noise: Tensor | None = None,
    ) -> PatchMask:
        """Draw one mask per image.

        Args:
            images: ``(B, C, H, W)``, any floating dtype or uint8; H and W multiples of the
                masking unit.
            mask_ratio, patch_size: The model's, see :meth:`layout`.
            generator: Source of randomness, on the images' device. Default: torch's own.
            noise: ``(B, U)`` uniform random numbers to use instead of drawing them, so that
                a caller can consume the random stream exactly as a stock pipeline does.

        Raises:
            TypeError: If ``images`` or ``noise`` is no tensor.
            ValueError: If the image is not divisible into units, no unit would be kept,
                ``noise`` has the wrong shape, or model and masking disagree.
        """
        check_shape("images", images, "B", "C", "H", "W")
        batch, _, height, width = images.shape
        layout = self.layout(height, width, mask_ratio=mask_ratio, patch_size=patch_size)
        grid, num_keep = layout.grid, layout.num_keep
        units = grid[0] * grid[1]
        if noise is None:
            noise = torch.rand(batch, units, device=images.device, generator=generator)
        else:
            check_shape("noise", noise, batch, units)
        scores = self.scores(images, grid, num_keep, noise, generator)
        mask = PatchMask.from_scores(scores, num_keep)
        return mask if layout.side == 1 else _units_to_patches(mask, grid, layout.side)


def _side(mask_unit: int, patch_size: int) -> int:
    if mask_unit % patch_size:
        raise ValueError(
            f"mask_unit must be a multiple of patch_size={patch_size}, got {mask_unit}"
        )
    return mask_unit // patch_size


def _units_to_patches(mask: PatchMask, grid: Grid, side: int) -> PatchMask:
    """Replace every masking unit by its ``side`` x ``side`` patches."""
    rows, cols = grid
    patches = torch.arange(rows * cols * side**2, device=mask.ids_shuffle.device)
    patches_of_unit = (
        patches.view(rows, side, cols, side).transpose(1, 2).reshape(rows * cols, side**2)
    )
    ids_shuffle = patches_of_unit[mask.ids_shuffle].flatten(1)
    return PatchMask(ids_shuffle, mask.num_keep * side**2, check=False)
