"""RankMe: the rank of the embeddings, smoothed."""

from __future__ import annotations

import torch
from torch import Tensor

from .monitors import monitor


@monitor
@torch.no_grad()
def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """exp of the entropy of the singular values' shares, of the features as they are.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained
    Self-Supervised Representations by Their Rank", ICML 2023, equations 1 and 2. Unlike
    :func:`~mim_plugins.analysis.effective_rank` it does not normalise the features. It is at
    most about ``min(n, D)``: take at least as many images as dimensions to compare models.

    Args:
        features: ``(n, D)``, one row per image.
        eps: Added to every share. Default: 1e-7, the paper's for float32.

    Returns:
        From 1 to about ``min(n, D)``; NaN if a feature is NaN or infinite or all are zero.

    Raises:
        ValueError: If ``features`` has another shape.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must have shape (n >= 2, D), got {tuple(features.shape)}")
    if not features.isfinite().all():
        return torch.nan
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() + eps
    return torch.special.entr(shares).sum().exp().item()
