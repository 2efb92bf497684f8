"""How many dimensions do features use? Effective rank and singular spectrum (U-MAE, B.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def singular_spectrum(features: Tensor) -> Tensor:
    """Singular values of l2-normalised features, as shares that sum to 1.

    Args:
        features: ``(n, D)``, one row per image, n >= 2 (the paper takes n = 100).

    Returns:
        ``(min(n, D),)`` float64, descending. Rows of zero norm count as zero; if all are
        zero the spectrum is that of a constant, ``[1, 0, ...]``. All NaN if a feature is NaN
        or infinite.

    Raises:
        ValueError: If ``features`` has another shape.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must have shape (n >= 2, D), got {tuple(features.shape)}")
    if not features.isfinite().all():
        return torch.full((min(features.shape),), torch.nan, dtype=torch.float64)
    values = torch.linalg.svdvals(F.normalize(features.double(), dim=1))
    total = values.sum()
    collapsed = torch.zeros_like(values)
    collapsed[0] = 1.0
    return torch.where(total > 0, values / total, collapsed)


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """Effective rank of features: exp of the entropy of :func:`singular_spectrum`.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022, appendix B.1; Roy and Vetterli, 2007.

    Args:
        features: ``(n, D)``, one row per image, n >= 2 (the paper takes n = 100).

    Returns:
        Between 1 (all features on a line) and ``min(n, D)`` (equal singular values); NaN if a
        feature is NaN or infinite.

    Example:
        >>> round(effective_rank(torch.eye(8)), 6)
        8.0
    """
    return torch.special.entr(singular_spectrum(features)).sum().exp().item()
