"""What a stock MAE or SimMIM reconstructs, as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models import VisionTransformer
from mmpretrain.models.selfsup import MAE, SimMIM
from torch import Tensor

from ...analysis.pixels import with_statistics_of
from .features import unwrap


@torch.no_grad()
def reconstruct(
    model: Any, inputs: Tensor, data_samples: Sequence | None = None, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """Reconstruct a batch with a stock MAE or SimMIM, or a subclass of either.

    Args:
        model: The algorithm. Put it in evaluation mode first.
        inputs: ``(B, 3, H, W)``, what the model's ``data_preprocessor`` returns.
        data_samples: Needed for the masks of SimMIM (key ``mask``), where ``masked``.
        masked: If False, the encoder sees every patch and every patch is predicted, as in
            figure 5 of Kong et al. (CVPR 2023), and no random number is drawn. If True, the
            model draws its own masks, and visible patches are those of the image.
            Default: False.

    Returns:
        Reconstruction and image, both ``(B, 3, H, W)`` float32 with the data preprocessor's
        normalisation undone and divided by 255: the image is in [0, 1], the reconstruction
        may leave it. A head with ``norm_pix`` predicts patches of mean 0 and variance 1:
        their own mean and variance are taken from the image.

    Raises:
        TypeError: If the model is neither MAE nor SimMIM, or its neck or head is not theirs.
        ValueError: If ``masked`` and a sample of SimMIM has no mask.
    """
    model = unwrap(model)
    if isinstance(model, MAE):
        predicted, mask = _mae(model, inputs, masked)
    elif isinstance(model, SimMIM):
        predicted, mask = _simmim(model, inputs, data_samples, masked)
    else:
        raise TypeError(f"model must be a MAE or SimMIM, got {type(model).__name__}")
    if masked:
        predicted = torch.where(mask, predicted, inputs)
    return _pixels(model, predicted), _pixels(model, inputs)


def _mae(model: MAE, inputs: Tensor, masked: bool) -> tuple[Tensor, Tensor]:
    """Prediction and mask, both ``(B, 3, H, W)``."""
    head = model.head
    for method in ("patchify", "unpatchify", "construct_target"):
        if not hasattr(head, method):
            raise TypeError(f"head must be a MAEPretrainHead, got {type(head).__name__}")
    latent, mask, ids_restore = (
        model.backbone(inputs) if masked else _encode_all(model.backbone, inputs)
    )
    # Of several masks per image (ComplementaryMasking) the first.
    patches = model.neck(latent, ids_restore)[: len(inputs)]
    mask = mask[: len(inputs)]
    mask = mask[:, :, None].expand_as(patches)
    predicted = head.unpatchify(patches)
    if head.norm_pix:
        predicted = with_statistics_of(predicted, inputs, head.patch_size)
    return predicted, head.unpatchify(mask).bool()


def _encode_all(backbone: Any, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a MAE backbone returns for masks that remove nothing."""
    if isinstance(backbone, VisionTransformer):
        latent = backbone(inputs, mask=None)[-1]
        if latent.ndim != 3 or not backbone.final_norm:
            raise TypeError("backbone must have out_type='raw' and final_norm=True, as MAEViT has")
        patches = latent.shape[1] - backbone.num_extra_tokens
        ids_restore = torch.arange(patches, device=inputs.device).expand(len(inputs), patches)
        return latent, torch.zeros_like(ids_restore, dtype=inputs.dtype), ids_restore
    # HiViT pools its tokens where it does not mask: it is given a mask that removes nothing.
    ids = torch.arange(backbone.num_patches, device=inputs.device)

    def keep_all(batch_size: int, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        every = ids.expand(batch_size, -1)
        return every, every, torch.zeros_like(every, dtype=inputs.dtype)

    backbone.masking_id = keep_all
    try:
        return backbone(inputs)
    finally:
        del backbone.masking_id  # the instance's; the class has its own


def _simmim(
    model: SimMIM, inputs: Tensor, data_samples: Sequence | None, masked: bool
) -> tuple[Tensor, Tensor]:
    """Prediction and mask, ``(B, 3, H, W)`` and ``(B, 1, H, W)``."""
    rows, cols = (side // model.head.patch_size for side in inputs.shape[2:])
    if masked:
        if data_samples is None or any("mask" not in sample for sample in data_samples):
            raise ValueError(
                "data_samples must hold the masks of SimMIM: put its SimMIMMaskGenerator into the "
                "test pipeline, before PackInputs"
            )
        mask = torch.stack([torch.as_tensor(sample.mask) for sample in data_samples])
        mask = mask.to(inputs.device)
    else:
        mask = torch.zeros(len(inputs), rows, cols, device=inputs.device)
    predicted = model.neck(model.backbone(inputs, mask)[0])
    side = model.head.patch_size
    pixels = mask.repeat_interleave(side, 1).repeat_interleave(side, 2)
    return predicted, pixels[:, None].bool()


def _pixels(model: Any, images: Tensor) -> Tensor:
    """Undo the data preprocessor's normalisation; 255 becomes 1."""
    preprocessor = model.data_preprocessor
    images = images.float()
    if getattr(preprocessor, "_enable_normalize", False):
        images = images * preprocessor.std + preprocessor.mean
    return images / 255
