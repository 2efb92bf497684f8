"""VICReg's terms on one set of features: spread in every dimension, and no two alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._check import check_weight
from .gather import sum_over_ranks
from .step import FeatureTerm

_EPS = 1e-4  # of the variance, as in the paper


class VarianceCovarianceLoss(FeatureTerm):
    """``weight`` times the variance and covariance terms of VICReg.

    Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
    Learning", ICLR 2022, Eqs. 1-4, with γ = 1. Logged as ``loss_variance_covariance_variance``
    and ``..._covariance``. Statistics are those of all ranks' images, whose numbers may differ.

    Args:
        weight: As of :class:`FeatureTerm`.
        variance_weight: Of the hinge ``max(0, 1 - std)``, averaged over dimensions. Default: 1.
        covariance_weight: Of the squared covariances of different dimensions, summed, over D.
            Default: 0.04, the paper's 1 : 25.
        **settings: Those of :class:`FeatureTerm`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """

    name = "variance_covariance"

    def __init__(
        self,
        weight: float = 0.01,
        *,
        variance_weight: float = 1.0,
        covariance_weight: float = 0.04,
        **settings: Any,
    ) -> None:
        super().__init__(weight, **settings)
        self.variance_weight = check_weight("variance_weight", variance_weight)
        self.covariance_weight = check_weight("covariance_weight", covariance_weight)

    def of_features(self, features: Tensor) -> dict[str, Tensor]:
        """Both terms of ``(B, D)``; one image alone has no variance."""
        over_all = sum_over_ranks if self.gather_distributed else Tensor.clone
        count = features.new_full((1,), len(features))
        total = over_all(torch.cat([features.sum(dim=0), count]))
        centred = features - total[:-1] / total[-1]
        scatter = over_all(centred.T @ centred)
        covariance = scatter / (total[-1] - 1).clamp(min=1)
        variance = covariance.diagonal()
        hinge = F.relu(1.0 - (variance + _EPS).sqrt()).mean()
        others = (covariance - variance.diag()).square().sum() / len(variance)
        return {
            "loss_variance": self.variance_weight * hinge,
            "loss_covariance": self.covariance_weight * others,
        }
