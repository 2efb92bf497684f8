"""What upstream's encoders do not say of themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from mmpretrain.models.selfsup import MAEHiViT, MAEViT
from torch import Tensor, nn

from .._observe import glancing
from ..masking import Masking, PatchMask


def num_prefix_tokens(backbone: Any) -> int:
    """Tokens before the patches: 0 for HiViT, Swin and a ViT without class token, else 1."""
    if getattr(backbone, "cls_token", None) is None:
        return 0
    return getattr(backbone, "num_extra_tokens", 1)


@torch.compiler.disable
def patch_tokens(backbone: Any, images: Tensor) -> Tensor:
    """``(B, N, D)`` tokens of the patches of whole images, without a trace in ``backbone``.

    Args:
        backbone: One that takes masks: of MAE a masked one of this package, or of SimMIM.
        images: ``(B, C, H, W)``.
    """
    with glancing(backbone, images):
        if isinstance(backbone, MAEViT | MAEHiViT):  # as it encodes in training, none removed
            every = torch.arange(backbone.num_patches, device=images.device)
            every = every.expand(len(images), -1)
            output = backbone.forward(images, PatchMask(every, every.shape[1], check=False))[0]
        else:
            output = backbone.forward(images, None)[-1]
    if output.ndim == 4:
        return output.flatten(2).mT
    return output[:, num_prefix_tokens(backbone) :]


def with_encoder(masking: Masking, backbone: nn.Module) -> Masking:
    """``masking``, which may compare patches by the tokens of ``backbone``."""
    return masking.with_encoder(partial(patch_tokens, backbone))
