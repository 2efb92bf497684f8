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

PREFIX = "timm:"


def check(features: str) -> None:
    """Make the model that ``features``, ``"timm:<name>"``, names.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If it has no such model, or one without tokens of patches at any size.
    """
    _model(features)


def patch_tokens(features: str, images: Tensor, grid: tuple[int, int]) -> Tensor:
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
def _patch_tokens(features: str, images: Tensor, grid: tuple[int, int]) -> Tensor:
    model = _model(features)
    model.to(images.device)
    weight = next(model.parameters())
    sides = zip(grid, model.patch_embed.patch_size, strict=True)
    size = tuple(units * patch for units, patch in sides)
    images = images.to(weight.dtype)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    with uncached_autocast(images.device):
        return model.forward_features(images)[:, model.num_prefix_tokens :]


@cache
def _model(features: str) -> Any:
    name = features.removeprefix(PREFIX)
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"features={features!r} needs timm: pip install 'mim_plugins[timm]'"
        ) from error
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"features must name a model of timm, got {features!r}")
    with preserve_rng():
        try:
            model = timm.create_model(name, pretrained=True, dynamic_img_size=True)
        except TypeError as error:  # one that knows no dynamic_img_size
            raise ValueError(_no_tokens(features)) from error
    if not hasattr(model, "num_prefix_tokens") or not hasattr(model, "patch_embed"):
        raise ValueError(_no_tokens(features))
    return model.eval().requires_grad_(False)


def _no_tokens(features: str) -> str:
    return (
        f"features={features!r} has no tokens of its patches at any image size: choose a plain "
        "vision transformer, as vit_small_patch16_224"
    )
