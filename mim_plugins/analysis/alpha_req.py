"""alpha-ReQ: how fast the spectrum of the features decays."""

from __future__ import annotations

import torch
from torch import Tensor

from .monitors import monitor


@monitor
@torch.no_grad()
def alpha_req(features: Tensor) -> float:
    """Exponent alpha of the eigenvalues of the features' covariance, ``lambda_i ~ i ** -alpha``.

    Agrawal et al., "alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by
    Measuring Eigenspectrum Decay", NeurIPS 2022. A least-squares line through
    ``(log i, log lambda_i)`` of all eigenvalues above 1e-10 of the largest: of few images the
    last ones are small by sampling alone, so compare models on the same number of images.

    Args:
        features: ``(n, D)``, one row per image.

    Returns:
        About 1 for good features, according to the paper; larger if few directions dominate,
        0 if all are equal. NaN if a feature is NaN or infinite, or if fewer than two
        eigenvalues are left.

    Raises:
        ValueError: If ``features`` has another shape.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must have shape (n >= 2, D), got {tuple(features.shape)}")
    if not features.isfinite().all():
        return torch.nan
    features = features.double()
    values = torch.linalg.svdvals(features - features.mean(dim=0)).square()
    values = values[values > 1e-10 * values[0]]
    if len(values) < 2:
        return torch.nan
    index = torch.arange(1, len(values) + 1, device=values.device).double().log()
    slope = torch.linalg.lstsq(
        torch.stack([index, torch.ones_like(index)], dim=1), values.log()[:, None]
    ).solution[0, 0]
    return -slope.item()
