"""Drop-in replacements for lightly's mask functions, with masks that depend on the images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from .._check import check_int, check_number, check_share
from ..masking import DPPMasking, Masking, PatchMask
from ..masking.base import agree


def token_mask(
    images: Tensor,
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
    *,
    masking: Masking,
    num_prefix_tokens: int = 1,
    grid_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks of any masking in the form of ``lightly.models.utils.random_token_mask``.

    And, by the last two arguments, of ``random_grid_token_mask`` and
    ``random_inverse_block_mask``.

    Args:
        images: ``(B, C, H, W)``, the images to be masked.
        size: ``(M * B, L)``; M is the masking's ``num_masks``, L counts prefix tokens and
            patches. The patch size follows from it and the images.
        mask_ratio: The model's; a masking that has its own must have the same. Default: 0.6.
        mask_class_token: Must be False: a class token has no pixels to compare.
        device: Device of the result. Default: the images'.
        masking: The mask generator.
        num_prefix_tokens: Class and register tokens before the patches. Default: 1.
        grid_size: Side in patches of the cells that are kept or removed as a whole, which
            become the masking's units. Default (None): the masking's own units.

    Returns:
        ``(idx_keep, idx_mask)`` as lightly's: token indices, all prefix tokens kept first.
        With :class:`RandomMasking` both equal those of lightly's ``random_token_mask``, or
        with a ``grid_size`` its ``random_grid_token_mask``, under the same seed.

    Raises:
        TypeError: If ``size`` is no pair, or ``masking`` no :class:`Masking`.
        ValueError: If the arguments disagree with each other or with the masking.
    """
    batch, length = _check_size(size, 2)
    _check_masking(masking)
    if mask_class_token:
        raise ValueError(
            "mask_class_token must be False: a class token has no pixels to compare, got "
            f"{mask_class_token!r}"
        )
    if len(images) * masking.num_masks != batch:
        raise ValueError(
            f"size must start with the number of masks, {len(images) * masking.num_masks}, "
            f"got {size}"
        )
    patch_size = square_patch(images, length - check_int("num_prefix_tokens", num_prefix_tokens, 0))
    if patch_size is None:
        raise ValueError(
            f"size must have num_prefix_tokens={num_prefix_tokens} and the square patches of "
            f"{tuple(images.shape[2:])} images, got {size}"
        )
    if grid_size is not None:
        check_int("grid_size", grid_size)
        height, width = (length // patch_size for length in images.shape[2:])
        if height % grid_size or width % grid_size:
            raise ValueError(
                f"grid_size must divide the {height} x {width} patches of an image, got {grid_size}"
            )
        unit = agree("mask_unit", masking.mask_unit, grid_size * patch_size)
        masking = copy.copy(masking)
        masking.mask_unit = unit
    model: Any = {"mask_ratio": mask_ratio, "patch_size": patch_size}
    noise = None
    if grid_size is None and masking.layout(*images.shape[2:], **model).side == 1:
        # lightly draws one number per token, also for those of the prefix.
        noise = torch.rand(len(images), length, device=images.device)[:, num_prefix_tokens:]
    mask = masking(images, **model, noise=noise)
    return token_indices(mask, num_prefix_tokens, device or images.device)


def token_indices(
    mask: PatchMask, num_prefix_tokens: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """``(idx_keep, idx_mask)`` as lightly's: token indices, all prefix tokens kept first."""
    keep, removed = mask.ids_keep.to(device), mask.ids_mask.to(device)
    prefix = torch.arange(num_prefix_tokens, device=device).expand(len(keep), -1)
    return torch.cat([prefix, keep + num_prefix_tokens], dim=1), removed + num_prefix_tokens


def dpp_token_mask(
    images: Tensor,
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
    *,
    num_prefix_tokens: int = 1,
    **dpp: Any,
) -> tuple[Tensor, Tensor]:
    """``lightly.models.utils.random_token_mask`` with DPP masks: pass the images as well.

    Args:
        images: ``(B, C, H, W)``, the images to be masked.
        size, mask_ratio, mask_class_token, device: As lightly's; ``mask_class_token`` must
            be False. The patch size follows from ``size`` and the images.
        num_prefix_tokens: Class and register tokens before the patches. Default: 1.
        **dpp: Further arguments of :class:`mim_plugins.masking.DPPMasking`, e.g. ``tau``.

    Returns:
        ``(idx_keep, idx_mask)``, each ``(B, number)`` long, all prefix tokens kept first.

    Raises:
        ValueError: If an argument is out of range or no square patch size fits.

    Example:
        >>> idx_keep, idx_mask = dpp_token_mask(torch.rand(2, 3, 32, 32), size=(2, 65))
        >>> idx_keep.shape, idx_mask.shape
        (torch.Size([2, 26]), torch.Size([2, 39]))
    """
    return token_mask(
        images,
        size,
        mask_ratio,
        mask_class_token,
        device,
        masking=DPPMasking(**dpp),
        num_prefix_tokens=num_prefix_tokens,
    )


def block_mask(
    images: Tensor,
    size: tuple[int, int, int],
    batch_mask_ratio: float = 0.5,
    device: torch.device | str | None = None,
    *,
    masking: Masking,
    mask_ratio: float | None = None,
    mask_ratio_var: float = 0.05,
) -> Tensor:
    """Masks of any masking in the form of ``lightly.models.utils.random_block_mask``.

    As in iBOT with random tokens instead of blocks (DPPMask, table 8): of a random
    ``int(B * batch_mask_ratio)`` images each loses a share of its patches drawn uniformly
    from ``mask_ratio`` plus or minus ``mask_ratio_var``; the others lose none.

    Args:
        images: ``(B, C, H, W)``, the images to be masked.
        size: ``(B, rows, columns)`` of the patches.
        batch_mask_ratio: Share of images that are masked. Default: 0.5.
        device: Device of the result. Default: the images'.
        masking: The mask generator, of one mask per image.
        mask_ratio: The mean ratio. Default (None): the masking's own, else 0.7 (table 8).
        mask_ratio_var: Half the width of the range of ratios. Default: 0.05.

    Returns:
        ``(B, rows, columns)`` bool, True = masked.

    Raises:
        TypeError: If ``size`` are no three ints, or ``masking`` is no :class:`Masking`.
        ValueError: If the arguments disagree or are out of range.
    """
    batch, rows, cols = _check_size(size, 3)
    _check_masking(masking)
    check_share("batch_mask_ratio", batch_mask_ratio)
    mask_ratio = agree("mask_ratio", masking.mask_ratio, mask_ratio, 0.7)
    check_number("mask_ratio", mask_ratio)
    check_number("mask_ratio_var", mask_ratio_var)
    low, high = mask_ratio - mask_ratio_var, mask_ratio + mask_ratio_var
    if not (mask_ratio_var >= 0 and low >= 0 and high < 1):
        raise ValueError(
            f"mask_ratio_var must keep mask_ratio={mask_ratio} +- mask_ratio_var in "
            f"[0, 1), got {mask_ratio_var}"
        )
    if getattr(masking, "method", None) == "exact":
        raise ValueError("method must be 'greedy': exact samples of different sizes do not nest")
    if masking.num_masks != 1:
        raise ValueError(f"masking must draw one mask per image here, got {masking}")
    patch_size = max(images.shape[2] // max(rows, 1), 1)
    layout = masking.layout(*images.shape[2:], mask_ratio=mask_ratio, patch_size=patch_size)
    grid = layout.grid[0] * layout.side, layout.grid[1] * layout.side
    if (batch, rows, cols) != (len(images), *grid):
        raise ValueError(
            f"size must be {(len(images), *grid)}, the images and their grid of patches, got {size}"
        )
    units = layout.grid[0] * layout.grid[1]
    noise = torch.rand(batch, units, device=images.device)
    # The order of choice does not depend on how many are chosen, so the first k of the
    # longest choice are the choice of k.
    longest = max(1, units - int(units * low))
    scores = masking.scores(images.detach(), layout.grid, longest, noise, None)
    rank = scores.argsort(dim=1).argsort(dim=1)
    ratio = low + (high - low) * torch.rand(batch, 1, device=images.device)
    is_masked = torch.rand(batch, 1, device=images.device).argsort(dim=0).argsort(dim=0)
    is_masked = is_masked < int(batch * batch_mask_ratio)
    num_keep = torch.where(is_masked, units - (units * ratio).long(), units)
    removed = (rank >= num_keep).view(batch, *layout.grid)
    removed = removed.repeat_interleave(layout.side, 1).repeat_interleave(layout.side, 2)
    return removed.to(device or images.device)


def dpp_block_mask(
    images: Tensor,
    size: tuple[int, int, int],
    batch_mask_ratio: float = 0.5,
    device: torch.device | str | None = None,
    *,
    mask_ratio: float = 0.7,
    mask_ratio_var: float = 0.05,
    **dpp: Any,
) -> Tensor:
    """``lightly.models.utils.random_block_mask`` with DPP masks: pass the images as well.

    Defaults are those of DPPMask's iBOT, table 8. See :func:`block_mask` for what is drawn.

    Args:
        images: ``(B, C, H, W)``, the images to be masked.
        size: ``(B, rows, columns)`` of the patches; the patch size follows.
        batch_mask_ratio: Share of images that are masked. Default: 0.5.
        device: Device of the result. Default: the images'.
        mask_ratio, mask_ratio_var: Ratio of masked patches and its variation. Defaults: 0.7
            and 0.05.
        **dpp: Further arguments of :class:`mim_plugins.masking.DPPMasking`, e.g. ``tau``.

    Returns:
        ``(B, rows, columns)`` bool, True = masked.

    Raises:
        ValueError: If an argument is out of range.
    """
    return block_mask(
        images,
        size,
        batch_mask_ratio,
        device,
        masking=DPPMasking(**dpp),
        mask_ratio=mask_ratio,
        mask_ratio_var=mask_ratio_var,
    )


def square_patch(images: Tensor, patches: int) -> int | None:
    """Side of the square patches of which each image has so many; None if there is none."""
    height, width = images.shape[2:]
    side = isqrt(height * width // max(patches, 1))
    fits = side > 0 and height % side == width % side == 0
    return side if fits and (height // side) * (width // side) == patches else None


def _check_masking(masking: Masking) -> None:
    if not isinstance(masking, Masking):
        raise TypeError(f"masking must be a mim_plugins.masking.Masking, got {masking!r}")


def _check_size(size: Sequence[int], length: int) -> tuple[int, ...]:
    if not isinstance(size, (list, tuple)) or len(size) != length:
        raise TypeError(f"size must be {length} ints, got {size!r}")
    return tuple(check_int("size", number) for number in size)
