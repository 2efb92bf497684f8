"""Drop-in replacements for lightly's mask functions, with masks that depend on the images."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from .._check import check_int, check_number, check_share
from ..masking import DPPMasking, Masking
from ..masking.base import agree


def _check_size(size: Sequence[int], length: int) -> tuple[int, ...]:
    if not isinstance(size, (list, tuple)) or len(size) != length:
        raise TypeError(f"size must be {length} ints, got {size!r}")
    return tuple(check_int("size", number) for number in size)


def _patch_size(images: Tensor, size: tuple[int, ...], patches: int) -> int:
    """Side of the square patches of which images have so many."""
    pixels = images.shape[2] * images.shape[3]
    side = isqrt(pixels // max(patches, 1))
    if side < 1 or side**2 * patches != pixels:
        raise ValueError(
            f"size must have one class token and the patches of {tuple(images.shape[2:])} images, "
            f"got {size}"
        )
    return side


def token_mask(
    images: Tensor,
    size: tuple[int, int],
    mask_ratio: float,
    masking: Masking,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks of any masking in the form of ``lightly.models.utils.random_token_mask``.

    Args:
        images: ``(B, C, H, W)``, the images to be masked.
        size: ``(M * B, L)``; M is the masking's ``num_masks``, L counts the class token and
            the patches.
        mask_ratio: The model's; if the masking has its own, it must be the same.
        masking: The mask generator.
        mask_class_token: Must be False: a class token has no pixels to compare.
        device: Device of the result. Default: the images'.

    Returns:
        ``(idx_keep, idx_mask)`` as lightly's: token indices, the class token 0 kept first.
        With :class:`RandomMasking` both equal lightly's under the same seed.

    Raises:
        ValueError: If the arguments disagree with each other or with the masking.
    """
    batch, length = _check_size(size, 2)
    if not isinstance(masking, Masking):
        raise TypeError(f"masking must be a mim_plugins.masking.Masking, got {masking!r}")
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
    model: Any = {"mask_ratio": mask_ratio, "patch_size": _patch_size(images, size, length - 1)}
    layout = masking.layout(*images.shape[2:], **model)
    # lightly draws one number per token, the class token's too.
    noise = torch.rand(len(images), length, device=images.device)[:, 1:]
    mask = masking(images, **model, noise=noise if layout.side == 1 else None)
    class_token = noise.new_zeros(batch, 1, dtype=torch.long)
    idx_keep = torch.cat([class_token, mask.ids_keep + 1], dim=1)
    return idx_keep.to(device or images.device), (mask.ids_mask + 1).to(device or images.device)


def dpp_token_mask(
    images: Tensor,
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
    **dpp: Any,
) -> tuple[Tensor, Tensor]:
    """``lightly.models.utils.random_token_mask`` with DPP masks: pass the images as well.

    Args:
        images: ``(B, C, H, W)``, the images to be masked.
        size, mask_ratio, mask_class_token, device: As lightly's; ``mask_class_token`` must
            be False. The patch size follows from ``size`` and the images.
        **dpp: Further arguments of :class:`mim_plugins.masking.DPPMasking`, e.g. ``tau``.

    Returns:
        ``(idx_keep, idx_mask)``, each ``(B, number)`` long, the class token 0 kept first.

    Raises:
        ValueError: If an argument is out of range or no square patch size fits.

    Example:
        >>> idx_keep, idx_mask = dpp_token_mask(torch.rand(2, 3, 32, 32), size=(2, 65))
        >>> idx_keep.shape, idx_mask.shape
        (torch.Size([2, 26]), torch.Size([2, 39]))
    """
    masking = DPPMasking(**dpp)
    return token_mask(images, size, mask_ratio, masking, mask_class_token, device)


def block_mask(
    images: Tensor,
    size: tuple[int, int, int],
    masking: Masking,
    batch_mask_ratio: float = 0.5,
    mask_ratio_var: float = 0.05,
    device: torch.device | str | None = None,
    mask_ratio: float | None = None,
) -> Tensor:
    """Masks of any masking in the form of ``lightly.models.utils.random_block_mask``.

    As in iBOT with random tokens instead of blocks (DPPMask, table 8): of a random
    ``int(B * batch_mask_ratio)`` images each loses a share of its patches drawn uniformly
    from ``mask_ratio`` plus or minus ``mask_ratio_var``; the others lose none.

    Args:
        images: ``(B, C, H, W)``, the images to be masked.
        size: ``(B, rows, columns)`` of the patches.
        masking: The mask generator.
        batch_mask_ratio: Share of images that are masked. Default: 0.5.
        mask_ratio_var: Half the width of the range of ratios. Default: 0.05.
        device: Device of the result. Default: the images'.
        mask_ratio: The mean ratio. Default: the masking's own, else 0.7 (DPPMask, table 8).

    Returns:
        ``(B, rows, columns)`` bool, True = masked.

    Raises:
        ValueError: If the arguments disagree or are out of range.
    """
    batch, rows, cols = _check_size(size, 3)
    check_share("batch_mask_ratio", batch_mask_ratio)
    check_number("mask_ratio_var", mask_ratio_var)
    mask_ratio = agree("mask_ratio", masking.mask_ratio, mask_ratio, 0.7)
    low, high = mask_ratio - mask_ratio_var, mask_ratio + mask_ratio_var
    if not (mask_ratio_var >= 0 and low >= 0 and high < 1):
        raise ValueError(
            f"mask_ratio_var must keep mask_ratio={mask_ratio} +- mask_ratio_var in "
            f"[0, 1), got {mask_ratio_var}"
        )
    if getattr(masking, "method", None) == "exact":
        raise ValueError("method must be 'greedy': exact samples of different sizes do not nest")
    patch_size = max(images.shape[2] // rows, 1)
    grid = masking.layout(*images.shape[2:], mask_ratio=mask_ratio, patch_size=patch_size).grid
    if (batch, rows, cols) != (len(images), *grid):
        raise ValueError(
            f"size must be {(len(images), *grid)}, the images and their grid of masking units, "
            f"got {size}"
        )
    units = rows * cols
    noise = torch.rand(len(images), units, device=images.device)
    # The order of choice does not depend on how many are chosen, so the first k of the
    # longest choice are the choice of k.
    longest = max(1, units - int(units * low))
    scores = masking.scores(images.detach(), grid, longest, noise, None)
    rank = scores.argsort(dim=1).argsort(dim=1)
    ratio = low + (high - low) * torch.rand(len(images), 1, device=images.device)
    is_masked = torch.rand(len(images), 1, device=images.device).argsort(dim=0).argsort(dim=0)
    is_masked = is_masked < int(len(images) * batch_mask_ratio)
    num_keep = torch.where(is_masked, units - (units * ratio).long(), units)
    return (rank >= num_keep).view(-1, *grid).to(device or images.device)


def dpp_block_mask(
    images: Tensor,
    size: tuple[int, int, int],
    batch_mask_ratio: float = 0.5,
    mask_ratio: float = 0.7,
    mask_ratio_var: float = 0.05,
    device: torch.device | str | None = None,
    **dpp: Any,
) -> Tensor:
    """``lightly.models.utils.random_block_mask`` with DPP masks: pass the images as well.

    Defaults are those of DPPMask's iBOT, table 8. See :func:`block_mask` for what is drawn.

    Args:
        images: ``(B, C, H, W)``, the images to be masked.
        size: ``(B, rows, columns)`` of the patches; the patch size follows.
        batch_mask_ratio: Share of images that are masked. Default: 0.5.
        mask_ratio, mask_ratio_var: Ratio of masked patches and its variation. Defaults: 0.7
            and 0.05.
        device: Device of the result. Default: the images'.
        **dpp: Further arguments of :class:`mim_plugins.masking.DPPMasking`, e.g. ``tau``.

    Returns:
        ``(B, rows, columns)`` bool, True = masked.

    Raises:
        ValueError: If an argument is out of range.
    """
    masking = DPPMasking(**dpp)
    return block_mask(images, size, masking, batch_mask_ratio, mask_ratio_var, device, mask_ratio)
