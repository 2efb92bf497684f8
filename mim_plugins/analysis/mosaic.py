"""Images, what a mask leaves of them, and what a model makes of that, side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._pixels import unit_range
from .._tensor import check_shape

GREY = 0.5
LINE = 2  # white pixels between pictures
MIN_SIDE = 96  # smaller pictures are enlarged by a whole factor


@torch.no_grad()
def mask_mosaic(images: Tensor, mask: Tensor, reconstruction: Tensor | None = None) -> Tensor:
    """One row per image: the image, the masked image, and the reconstruction if there is one.

    Masked patches are grey; where there is a reconstruction it fills them, and the last
    column is the reconstruction everywhere. Of images that are not RGB one channel is shown
    in grey, and three or more channels as RGB are the first three.

    Args:
        images: ``(B, C, H, W)`` floating; brought into [0, 1] by
            :func:`~mim_plugins._pixels.unit_range` if they leave it.
        mask: ``(B, rows, columns)``, True or 1 = removed.
        reconstruction: ``(B, C, H, W)`` floating, on the scale of the images; clipped to
            [0, 1], and where it is NaN shown in black.

    Returns:
        ``(height, width, 3)`` uint8 on the CPU.

    Raises:
        ValueError: If shapes do not fit.
    """
    check_shape("images", images, "B >= 1", "C >= 1", "H >= 1", "W >= 1")
    check_shape("mask", mask, len(images), "rows", "columns")
    if reconstruction is not None:
        check_shape("reconstruction", reconstruction, *images.shape)
    images, *others = unit_range(images, *([] if reconstruction is None else [reconstruction]))
    shown = slice(0, 3 if images.shape[1] >= 3 else 1)
    images, *others = (each[:, shown].expand(-1, 3, -1, -1) for each in (images, *others))
    removed = F.interpolate(mask[:, None].float(), images.shape[2:], mode="nearest") > 0.5
    columns = [images, torch.where(removed, images.new_tensor(GREY), images)]
    for predicted in others:
        columns += [torch.where(removed, predicted, images), predicted]
    pictures = torch.stack(columns, dim=1).nan_to_num().clamp(0, 1)  # (B, columns, 3, H, W)
    factor = -(-MIN_SIDE // min(images.shape[2:]))
    pictures = pictures.repeat_interleave(factor, 3).repeat_interleave(factor, 4)
    pictures = F.pad(pictures, (0, LINE, 0, LINE), value=1.0)
    batch, number, _, height, width = pictures.shape
    mosaic = pictures.permute(0, 3, 1, 4, 2).reshape(batch * height, number * width, 3)
    return (mosaic[:-LINE, :-LINE] * 255).round().to(torch.uint8).cpu()
