"""Images of any channels, shape and statistics, as values in [0, 1] and as patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def unit_range(images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Images, and others on their scale, so that the images are within [0, 1].

    Images that are in [0, 1] stay as they are. Where they leave it, since their normalisation
    is another than the one that was undone, say, or their data no photographs, the range from
    min(0, smallest value) to max(1, largest) becomes [0, 1].

    Args:
        images: Floating, any shape.
        *others: Such as their reconstructions.

    Returns:
        All of them, float32; the others may leave [0, 1].
    """
    images = images.float()
    lowest, highest = images.amin().clamp(max=0), images.amax().clamp(min=1)
    return tuple((each.float() - lowest) / (highest - lowest) for each in (images, *others))


def undo_normalization(
    images: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    """``images * std + mean``, float32.

    Args:
        images: ``(B, C, H, W)``.
        mean, std: C numbers, or one for all channels. None: that of no normalisation.

    Raises:
        ValueError: If their number is another.
    """
    images = images.float()
    numbers = []
    for name, value, neutral in (("std", std, 1.0), ("mean", mean, 0.0)):
        value = [neutral] if value is None else value
        if len(value) not in (1, images.shape[1]):
            raise ValueError(
                f"{name} must be one number, or one per channel of the images, "
                f"{images.shape[1]}, got {list(value)}"
            )
        numbers.append(torch.tensor(value, device=images.device).view(-1, 1, 1))
    return images * numbers[0].float() + numbers[1].float()


def grid_of(num_patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of ``num_patches`` square patches of an image.

    Raises:
        ValueError: If there are no such.

    Example:
        >>> grid_of(32, 32, 64)
        (4, 8)
    """
    rows = round((num_patches * height / width) ** 0.5)
    if not rows or num_patches % rows or rows * width != num_patches // rows * height:
        raise ValueError(f"{height} x {width} images have no {num_patches} square patches")
    return rows, num_patches // rows


def patchify(images: Tensor, patch: int) -> Tensor:
    """``(B, C, H, W)`` to ``(B, N, patch * patch * C)``, the channel last, as MAE does."""
    batch, channels, height, width = images.shape
    split = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The images ``(B, C, height, width)`` of :func:`patchify`."""
    rows, columns = height // patch, width // patch
    split = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, height, width)


def with_statistics_of(predicted: Tensor, images: Tensor, patch: int) -> Tensor:
    """Give normalised patches ``patch`` pixels wide (``norm_pix``) the images' mean and variance.

    Args:
        predicted, images: ``(B, C, H, W)``.
        patch: Side of a patch; variances are unbiased, plus 1e-6, as MAE's are.
    """
    variance, mean = torch.var_mean(patchify(images.float(), patch), dim=2, keepdim=True)
    patches = patchify(predicted, patch) * (variance + 1e-6).sqrt() + mean
    return unpatchify(patches, patch, *images.shape[2:])
