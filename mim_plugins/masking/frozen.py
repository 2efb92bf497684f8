"""Patch tokens of frozen models of timm, to compare masking units by.

A model is made once per process and kept here, not in the masking or in the model that is
trained: no ``state_dict``, copy or pickle has it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._observe import preserve_rng, uncached_autocast
from .._versions import importing
from .base import Grid

PREFIX = "timm:"


def patch_tokens(features: str, images: Tensor, grid: Grid) -> Tensor:
    """``(B, U, D)``: one token per masking unit.

    The model gets the images as they come, normalised or not, resized so that a unit has the
    size of its patches.

    Args:
        features: ``"timm:<name>"``.
        images: ``(B, 3, H, W)``.
        grid: Rows and columns of units, U in all.
    """
    # Not a decorator: that would import torch._dynamo, and networkx, with this package.
    return torch.compiler.disable(_patch_tokens)(features, images, grid)


@torch.no_grad()
def _patch_tokens(features: str, images: Tensor, grid: Grid) -> Tensor:
    frozen = model(features)
    frozen.to(images.device)
    weight = next(frozen.parameters())
    sides = zip(grid, frozen.patch_embed.patch_size, strict=True)
    size = tuple(units * patch for units, patch in sides)
    images = images.to(weight.dtype)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    with uncached_autocast(images.device):
        return frozen.forward_features(images)[:, frozen.num_prefix_tokens :]


@cache
def model(features: str) -> Any:
    """The model that ``features``, ``"timm:<name>"``, names.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If it has no such model, or one without tokens of patches at any size.
    """
    name = features.removeprefix(PREFIX)
    with importing(f"features={features!r} needs timm", "timm"):
        import timm
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"features must name a model of timm, got {features!r}")
    try:
        with preserve_rng():
            made = timm.create_model(name, pretrained=True, dynamic_img_size=True)
        if not hasattr(made, "num_prefix_tokens") or not hasattr(made, "patch_embed"):
            raise TypeError(f"{type(made).__name__} has no tokens")
    except TypeError as error:  # also of one that knows no dynamic_img_size
        raise ValueError(
            f"features={features!r} has no tokens of its patches at any image size: choose a "
            "plain vision transformer, as vit_small_patch16_224"
        ) from error
    return made.eval().requires_grad_(False)
