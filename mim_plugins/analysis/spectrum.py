"""How many dimensions do features use, and how evenly? Figures of their singular values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._tensor import check_shape
from .monitors import monitor


def _singular_values(features: Tensor) -> Tensor:
    """Descending, of ``(n >= 2, D)`` in float64; all NaN if a feature is NaN or infinite."""
    check_shape("features", features, "n >= 2", "D")
    features = features.double()
    if not features.isfinite().all():
        return features.new_full((min(features.shape),), torch.nan)
    return torch.linalg.svdvals(features)


def _entropy_rank(shares: Tensor) -> float:
    """exp of the entropy of shares that sum to about 1."""
    return torch.special.entr(shares).sum().exp().item()


@monitor
@torch.no_grad()
def singular_spectrum(features: Tensor) -> Tensor:
    """Singular values of l2-normalised features, as shares that sum to 1 (U-MAE, B.1).

    Args:
        features: ``(n, D)``, one row per image, n >= 2 (the paper takes n = 100).

    Returns:
        ``(min(n, D),)`` float64, descending. Rows of zero norm count as zero; if all are
        zero the spectrum is that of a constant, ``[1, 0, ...]``. All NaN if a feature is NaN
        or infinite.

    Raises:
        ValueError: If ``features`` has another shape.
    """
    values = _singular_values(F.normalize(features.double(), dim=-1))
    if not values.any():
        values[0] = 1.0
    return values / values.sum()


@monitor
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
    return _entropy_rank(singular_spectrum(features))


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
    values = _singular_values(features)
    return _entropy_rank(values / values.sum() + eps)


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
    check_shape("features", features, "n >= 2", "views >= 2", "D")
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
    return _entropy_rank(values / values.sum() + eps)


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
    features = features.double()
    values = _singular_values(features - features.mean(dim=0)).square()
    values = values[values > 1e-10 * values[0]]
    if len(values) < 2:
        return torch.nan
    index = torch.arange(1, len(values) + 1, device=values.device).double().log()
    index -= index.mean()
    return -(index @ values.log() / index.square().sum()).item()
