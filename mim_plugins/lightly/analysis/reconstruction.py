"""What a stock MAE or SimMIM module of lightly reconstructs, as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from lightly.models.modules.masked_vision_transformer_decoder import (
    MaskedVisionTransformerDecoder,
)
from torch import Tensor, nn

from ..._pixels import unpatchify
from ..watch import prefix_tokens
from .callback import pixels

MAE_PARTS = ("backbone", "decoder_embed", "decoder", "prediction_head")


def can_reconstruct(module: nn.Module, channels: int = 3) -> bool:
    """Whether :func:`reconstruct` knows how the module predicts pixels of so many channels."""
    parts = [getattr(module, name, None) for name in MAE_PARTS]
    backbone, _, decoder, last = parts
    if isinstance(decoder, nn.Linear):
        last = decoder
    elif not isinstance(decoder, MaskedVisionTransformerDecoder) or None in parts:
        return False
    if not isinstance(backbone, MaskedVisionTransformer):
        return False
    return getattr(last, "out_features", None) in (None, channels * patch_size(backbone) ** 2)


@torch.no_grad()
def reconstruct(
    module: Any,
    images: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Reconstruct unmasked images with a module of the shape of lightly's MAE or SimMIM.

    The encoder sees every patch and every patch is predicted, as in figure 5 of Kong et al.
    (CVPR 2023).

    Args:
        module: With ``backbone``, ``decoder_embed``, ``decoder`` and ``prediction_head`` as
            lightly's MAE, or ``backbone`` and a linear ``decoder`` as its SimMIM. Put it in
            evaluation mode first.
        images: ``(B, C, H, W)``, normalised as in training.
        mean, std: Of that normalisation, a number per channel, or one for all. Default:
            ImageNet's for three channels, which is lightly's default, and none for others.

    Returns:
        Reconstruction and image, both ``(B, C, H, W)`` float32, the normalisation undone.

    Raises:
        TypeError: If the module has neither shape.
    """
    if not can_reconstruct(module, images.shape[1]):
        raise TypeError(
            f"{type(module).__name__} must have lightly's backbone with {MAE_PARTS[1:]} as its "
            "MAE, or with a linear decoder as its SimMIM, and predict patches of "
            f"{images.shape[1]} channels"
        )
    encoded = module.backbone.encode(images)
    if isinstance(module.decoder, MaskedVisionTransformerDecoder):
        predicted = module.prediction_head(module.decoder(module.decoder_embed(encoded)))
    else:
        predicted = module.decoder(encoded)
    patches = predicted[:, prefix_tokens(module.backbone) :]
    predicted = unpatchify(patches, patch_size(module.backbone), *images.shape[2:])
    return pixels(predicted, mean, std), pixels(images, mean, std)


def patch_size(encoder: Any) -> int:
    """Side of the square patches, of timm's or torchvision's vision transformer."""
    found = getattr(getattr(encoder.vit, "patch_embed", encoder.vit), "patch_size", 0)
    return int(found[0] if isinstance(found, (list, tuple)) else found)
