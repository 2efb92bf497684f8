"""What a stock MAE or SimMIM module of lightly reconstructs, as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from lightly.models.modules.masked_vision_transformer_decoder import (
    MaskedVisionTransformerDecoder,
)
from lightly.transforms.utils import IMAGENET_NORMALIZE
from torch import Tensor, nn

from ..watch import prefix_tokens

MAE_PARTS = ("backbone", "decoder_embed", "decoder", "prediction_head")


def can_reconstruct(module: nn.Module) -> bool:
    """Whether :func:`reconstruct` knows how the module predicts pixels."""
    backbone, decoder = (getattr(module, name, None) for name in ("backbone", "decoder"))
    if not isinstance(backbone, MaskedVisionTransformer):
        return False
    if isinstance(decoder, MaskedVisionTransformerDecoder):
        return all(isinstance(getattr(module, name, None), nn.Module) for name in MAE_PARTS)
    return isinstance(decoder, nn.Linear)


@torch.no_grad()
def reconstruct(
    module: Any,
    images: Tensor,
    mean: Sequence[float] = IMAGENET_NORMALIZE["mean"],
    std: Sequence[float] = IMAGENET_NORMALIZE["std"],
) -> tuple[Tensor, Tensor]:
    """Reconstruct unmasked images with a module of the shape of lightly's MAE or SimMIM.

    The encoder sees every patch and every patch is predicted, as in figure 5 of Kong et al.
    (CVPR 2023).

    Args:
        module: With ``backbone``, ``decoder_embed``, ``decoder`` and ``prediction_head`` as
            lightly's MAE, or ``backbone`` and a linear ``decoder`` as its SimMIM. Put it in
            evaluation mode first.
        images: ``(B, 3, H, W)``, normalised as in training.
        mean, std: Of that normalisation. Default: ImageNet's, which is lightly's default.

    Returns:
        Reconstruction and image, both ``(B, 3, H, W)`` float32, the normalisation undone.

    Raises:
        TypeError: If the module has neither shape.
    """
    if not can_reconstruct(module):
        raise TypeError(
            f"{type(module).__name__} must have lightly's backbone with {MAE_PARTS[1:]} as its "
            "MAE, or with a linear decoder as its SimMIM"
        )
    encoded = module.backbone.encode(images)
    if isinstance(module.decoder, MaskedVisionTransformerDecoder):
        predicted = module.prediction_head(module.decoder(module.decoder_embed(encoded)))
    else:
        predicted = module.decoder(encoded)
    patches = predicted[:, prefix_tokens(module.backbone) :].float()
    predicted = utils.unpatchify(patches, isqrt(patches.shape[2] // images.shape[1]))
    center, scale = (
        torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std)
    )
    return predicted * scale + center, images.float() * scale + center
