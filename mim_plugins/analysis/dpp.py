"""What DPP masks keep: alignment and diversity (DPPMask, E), co-occurrence (DPPMask, F)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .._check import check_int
from ..masking import Masking, PatchMask


class AlignmentDiversity(NamedTuple):
    """Result of :func:`mask_alignment_diversity`, one value per image."""

    alignment: Tensor
    """``(B,)`` mean l2 distance of masked to unmasked features; small = well aligned."""
    diversity: Tensor
    """``(B,)`` mean l2 distance between the features under two draws; large = diverse."""


@torch.no_grad()
def mask_alignment_diversity(
    encode: Callable[[Tensor, PatchMask | None], Tensor],
    images: Tensor,
    masking: Masking,
    draws: int = 5,
    generator: torch.Generator | None = None,
) -> AlignmentDiversity:
    """How far masks move an image's representation, and how different they are.

    The two quantities of DPPMask, figure 7: the l2 distance between the [CLS] feature of
    the masked and of the unmasked image, and that between the [CLS] features under
    independently drawn masks.

    Args:
        encode: Maps ``(images, mask)`` to features ``(B, D)``; ``mask=None`` is the
            unmasked image.
        images: ``(B, C, H, W)``.
        masking: The mask generator to examine.
        draws: Masks per image, at least 2. Default: 5, as in the paper.
        generator: Source of the masks' randomness, on the images' device.

    Raises:
        ValueError: If ``draws`` is below 2.
    """
    check_int("draws", draws, 2)
    unmasked = encode(images, None)
    masked = [encode(images, masking(images, generator=generator)) for _ in range(draws)]
    alignment = torch.stack([(one - unmasked).norm(dim=1) for one in masked])
    diversity = torch.stack([(a - b).norm(dim=1) for a, b in combinations(masked, 2)])
    return AlignmentDiversity(alignment.mean(dim=0), diversity.mean(dim=0))


@torch.no_grad()
def cooccurrence(L: Tensor, expected_size: float | None = None) -> Tensor:
    """Probability that a DPP keeps both of two patches.

    From the marginal kernel ``K = L (L + I)^-1``: patch i is kept with probability
    ``K_ii``, patches i and j together with ``K_ii K_jj - K_ij^2`` (Kulesza and Taskar,
    "Determinantal Point Processes for Machine Learning", 2012, section 2.1).

    Args:
        L: ``(B, N, N)`` symmetric positive semi-definite kernels.
        expected_size: If given, L is scaled such that this many patches are kept on
            average, in (0, rank of L). Default: L as it is.

    Returns:
        ``(B, N, N)`` float64, the inclusion probabilities on the diagonal.

    Raises:
        ValueError: If ``expected_size`` is out of range.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(L.double())
    log_eigenvalues = eigenvalues.clamp(min=0.0).log()
    log_scale = eigenvalues.new_zeros(len(L), 1)
    if expected_size is not None:
        if not 0 < expected_size < L.shape[1]:
            raise ValueError(f"expected_size must be in (0, N={L.shape[1]}), got {expected_size}")
        low, high = log_scale - 60, log_scale + 60
        for _ in range(100):  # bisection: the expected size grows with the scale
            log_scale = (low + high) / 2
            size = (log_eigenvalues + log_scale).sigmoid().sum(dim=1, keepdim=True)
            low = torch.where(size > expected_size, low, log_scale)
            high = torch.where(size > expected_size, log_scale, high)
    shares = (log_eigenvalues + log_scale).sigmoid()  # s / (1 + s) of the scaled eigenvalues s
    K = (eigenvectors * shares[:, None]) @ eigenvectors.mT
    inclusion = K.diagonal(dim1=1, dim2=2)
    together = (inclusion[:, :, None] * inclusion[:, None] - K**2).clamp_(min=0.0)
    together.diagonal(dim1=1, dim2=2).copy_(inclusion)
    return together
