"""LiDAR: the rank of what tells images apart, relative to what augmentation changes."""

from __future__ import annotations

import torch
from torch import Tensor

from .monitors import monitor


@monitor(views=10)
@torch.no_grad()
def lidar(features: Tensor, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """Effective rank of the linear discriminant between images, each a class of its views.

    Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL
    Architectures", ICLR 2024: exp of the entropy of the eigenvalues' shares of
    ``S_w^-1/2 S_b S_w^-1/2``, with the covariance ``S_b`` of the images' means, and that of
    views about them, ``S_w``, plus ``delta`` times the identity.

    The hooks and callbacks get the views by taking each image 10 times from a data set that
    augments at random; the paper takes 50 views of 1000 images. It is at most about
    ``min(n - 1, D)``.

    Args:
        features: ``(n, views, D)``: n >= 2 images, each in at least 2 views.
        delta: Default: 1e-4, the paper's.
        eps: Added to every share. Default: 1e-7.

    Returns:
        From 1 to about ``min(n - 1, D)``; NaN if a feature is NaN or infinite or all images
        have the same mean.

    Raises:
        ValueError: If ``features`` has another shape.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(
            f"features must have shape (n >= 2, views >= 2, D), got {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        return torch.nan
    features = features.double()
    means = features.mean(dim=1, keepdim=True)
    within = (features - means).flatten(0, 1)
    between = (means - means.mean(dim=0, keepdim=True)).flatten(0, 1)
    # With S_w + delta = V diag(w) V^T the eigenvalues are those of the whitened means' covariance.
    w, v = torch.linalg.eigh(within.T @ within / len(within))
    whitened = between @ v / (w.clamp(min=0) + delta).sqrt()
    values = torch.linalg.svdvals(whitened).square()
    shares = values / values.sum() + eps
    return torch.special.entr(shares).sum().exp().item()
