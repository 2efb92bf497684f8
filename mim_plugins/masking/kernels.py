"""Similarity kernels between the patches of an image, the L of an L-ensemble."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from .._check import check_choice, check_positive
from .._observe import uncached_autocast
from .._tensor import check_shape, widest_dtype
from . import frozen
from .base import Grid

KERNELS = ("rbf", "cosine")
FEATURES = ("pixels", "pooled")
ENCODER = "encoder"  # the patch tokens of the model that is masked, which gives a callable

POOLED_SIDE = 4  # "pooled" features: each masking unit averaged down to 4 x 4 pixels
# Relative float32 rounding of a squared distance. Taken off, it makes equal patches, whose
# distance is nothing but rounding, exactly equal.
ROUNDING = 1e-6
LARGEST = 1e6  # squares of larger values would overflow
MEDIAN_ROWS = 32


def check_kernel(kernel: str, bandwidth: float | None) -> None:
    """Raise unless ``kernel`` and ``bandwidth`` suit :func:`patch_kernel`."""
    check_choice("kernel", kernel, KERNELS)
    if bandwidth is not None and kernel != "rbf":
        raise ValueError(f"bandwidth applies to kernel='rbf' only, got kernel={kernel!r}")
    if bandwidth is not None:
        check_positive("bandwidth", bandwidth)


def in_range(bandwidth: float) -> float:
    """The nearest bandwidth whose square neither vanishes nor overflows in float32."""
    return min(max(float(bandwidth), 1e-18), 1e18)


def unit_sides(height: int, width: int, features: str) -> tuple[int, int]:
    """Height and width in pixels of what describes a unit of ``height`` x ``width``."""
    if features == "pooled" and min(height, width) > POOLED_SIDE:
        return POOLED_SIDE, POOLED_SIDE
    return height, width


def unit_features(
    images: Tensor,
    grid: Grid,
    features: str | Callable[[Tensor], Tensor] = "pooled",
) -> Tensor:
    """Describe every masking unit by a vector.

    Args:
        images: ``(B, C, H, W)``.
        grid: Rows and columns of units, U in all; they must divide H and W.
        features: ``"pixels"``, the unit's pixels; ``"pooled"``, the unit averaged down to
            4 x 4 pixels; ``"timm:<name>"``, see :mod:`.frozen`; or a callable from
            ``images`` to ``(B, U, D)``, e.g. the patch tokens of a backbone. Tokens of
            patches of which S x S make a unit, ``(B, S * S * U, D)``, are averaged over it.

    Returns:
        ``(B, U, D)`` float32. Entries that are not finite become 0.

    Raises:
        ValueError: If a callable returns another shape.
    """
    batch, channels, height, width = images.shape
    rows, cols = grid
    if callable(features):
        with torch.no_grad(), uncached_autocast(images.device):
            vectors = _over_units(features(images), grid)
        check_shape("features(images)", vectors, batch, rows * cols, "D")
    elif features.startswith(frozen.PREFIX):
        vectors = frozen.patch_tokens(features, images, grid)
    else:
        pixels = images if images.is_floating_point() else images.float()
        side_h, side_w = unit_sides(height // rows, width // cols, features)
        if (rows * side_h, cols * side_w) != (height, width):
            pixels = F.adaptive_avg_pool2d(pixels, (rows * side_h, cols * side_w))
        pixels = pixels.reshape(batch, channels, rows, side_h, cols, side_w)
        vectors = pixels.permute(0, 2, 4, 1, 3, 5).reshape(
            batch, rows * cols, channels * side_h * side_w
        )
    vectors = torch.nan_to_num(vectors.float(), nan=0.0, posinf=0.0, neginf=0.0)
    return vectors.clamp_(-LARGEST, LARGEST)


def _over_units(tokens: Tensor, grid: Grid) -> Tensor:
    """Average the tokens of S x S patches to one of the unit that they make up."""
    rows, cols = grid
    side = isqrt(tokens.shape[1] // (rows * cols)) if tokens.ndim == 3 else 1
    if side < 2 or tokens.shape[1] != rows * cols * side**2:
        return tokens
    tokens = tokens.float().unflatten(1, (rows, side, cols, side))
    return tokens.mean(dim=(2, 4)).flatten(1, 2)


def unit_vectors(features: Tensor) -> Tensor:
    """``(B, N, D + 1)`` features of length 1, whose products are the cosine kernel.

    The last entry is 1 for patches all of whose features are 0, so that they are equal to
    each other and at right angles to all others. float64 where the device has it.
    """
    x = features.to(widest_dtype(features.device))
    norm = x.norm(dim=2, keepdim=True)
    return torch.cat([x / torch.where(norm > 0, norm, 1), (norm == 0).to(x.dtype)], dim=2)


@torch.no_grad()
def patch_kernel(features: Tensor, kernel: str = "rbf", bandwidth: float | None = None) -> Tensor:
    """Similarity of all pairs of patches, positive semi-definite with unit diagonal.

    ``"rbf"`` is ``exp(-||x_i - x_j||^2 / (2 bandwidth^2))``; the default bandwidth is each
    image's median distance between patches, over the pairs with one of 32 evenly spaced
    patches (all pairs if there are no more). ``"cosine"`` is the cosine similarity; patches
    all of whose features are 0 are equal to each other, and to others 0.
    Computed in float64 where the device has it, outside autocast, and rounded to float32.

    Args:
        features: ``(B, N, D)``, finite.
        kernel: ``"rbf"`` or ``"cosine"``. Default: ``"rbf"``.
        bandwidth: RBF bandwidth in the features' unit. Default: median heuristic.

    Returns:
        ``(B, N, N)`` float32, symmetric up to rounding, values in [0, 1] (rbf) or [-1, 1].

    Raises:
        ValueError: If ``kernel`` or ``bandwidth`` is not allowed.
    """
    check_kernel(kernel, bandwidth)
    meta = features.is_meta  # for which there is no autocast
    with nullcontext() if meta else torch.autocast(features.device.type, enabled=False):
        # float32 products may be TF32's or bfloat16's, as the user sets.
        if kernel == "cosine":
            x = unit_vectors(features)
            similarity = (x @ x.mT).float().clamp_(-1.0, 1.0)
        else:
            x = features.to(widest_dtype(features.device))
            # Centring leaves distances as they are and loses fewer digits below.
            x = x - x.mean(dim=1, keepdim=True)
            norms = x.square().sum(dim=2) * (1 - ROUNDING)
            distances = norms[:, :, None] + norms[:, None, :]
            distances = distances.baddbmm_(x, x.mT, alpha=-2).clamp_(min=0.0).float()
            if bandwidth is None:
                scale = _median_of_pairs(distances)[:, None, None]
                # More than half of the pairs equal: the limit bandwidth -> 0.
                distances.div_(scale.clamp_(min=torch.finfo(torch.float32).tiny))
            else:
                distances.div_(in_range(bandwidth) ** 2)
            similarity = distances.div_(-2).exp_()
    similarity.diagonal(dim1=1, dim2=2).fill_(1.0)
    return similarity


def _median_of_pairs(distances: Tensor) -> Tensor:
    """Median over pairs of ``(B, N, N)`` with zero diagonal, one of each pair in 32 rows."""
    num = distances.shape[1]
    if num == 1:
        return distances.new_ones(len(distances))
    rows = distances[:, :: -(-num // MEDIAN_ROWS)]
    # Sorted, each row's zero on the diagonal comes first: skip as many as there are rows.
    rank = rows.shape[1] + (rows.shape[1] * (num - 1) + 1) // 2
    if distances.is_cuda:  # where kthvalue fails under use_deterministic_algorithms
        return rows.flatten(1).sort(dim=1).values[:, rank - 1]
    return rows.flatten(1).kthvalue(rank, dim=1).values
