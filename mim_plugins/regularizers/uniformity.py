"""Spectral uniformity: keep the features of different images apart (U-MAE, Eq. 11)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._check import check_bool
from .._tensor import check_shape
from .gather import sum_over_ranks, world_size
from .step import FeatureTerm, Step, in_float32


def uniformity(features: Tensor, *, gather_distributed: bool = True) -> Tensor:
    """Mean squared cosine similarity of all pairs of features, L_unif of U-MAE.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022, Eq. 11, on l2-normalised features as in the official code.
    The mean is over all n^2 ordered pairs, pairs of an image with itself included, also as
    in the official code. Those have the constant value 1 and no gradient, so leaving them
    out would only rescale: ``L_without = (n * L - 1) / (n - 1)``.

    With F the (n, D) normalised features, the sum over pairs is ``||F F^T||^2``, which
    equals ``||F^T F||^2`` (Frobenius). The smaller of the two matrices is computed, always
    in float32 or wider, outside autocast: float16 norms overflow. Over several ranks the
    (D, D) matrix is summed, one message of D^2 + 1 numbers each way; the ranks' batches may
    differ in size.

    Args:
        features: ``(n, D)`` floating, n >= 1, one row per image.
        gather_distributed: Take the pairs from all ranks. Then every rank must call this.
            Without effect in a single process. Default: True.

    Returns:
        Scalar between ``1 / min(n, D)`` (orthonormal features) and 1 (all on one line),
        float32, or float64 for float64 features. A feature of zero norm has similarity 0
        with everything, itself included, and gets no gradient. One image alone gives 1.

    Raises:
        TypeError: If ``features`` is not floating.
        ValueError: If ``features`` has another shape.

    Example:
        >>> uniformity(torch.eye(4))
        tensor(0.2500)
    """
    if not features.is_floating_point():
        raise TypeError(f"features must be floating, got {features.dtype}")
    check_shape("features", features, "n >= 1", "D >= 1")
    num, dim = features.shape
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        unit = F.normalize(features, dim=1)
        if gather_distributed and world_size() > 1:
            moment = (unit.T @ unit).flatten()
            summed = sum_over_ranks(torch.cat([moment, moment.new_full((1,), num)]))
            return summed[:-1].square().sum() / summed[-1].square()
        products = unit @ unit.T if num < dim else unit.T @ unit
        return products.square().sum() / num**2


class UniformityLoss(FeatureTerm):
    """The term that U-MAE adds to a reconstruction loss: ``weight`` times Eq. 11.

    See :func:`uniformity` for the formula, and docs/u-mae.md for the two options that repeat
    the official code where it departs from the paper.

    Args:
        weight: λ of Eq. 10, finite and at least 0. The sources name values from 1e-5 to 1e-2
            (docs/u-mae.md). Default: 0.01, the official script's.
        official_gather: Divide the gradient, not the value, by the number of ranks W, as the
            official gathering does: λ acts as λ / W. Default: False.
        double_norm: [CLS] passes the encoder's final norm a second time, as in the official
            code. Default: False.
        **settings: Those of :class:`FeatureTerm`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or an option does not go with another.

    Example:
        >>> loss_fn = UniformityLoss(weight=1e-2)
        >>> latent = torch.randn(8, 1 + 49, 192, requires_grad=True)  # of a MAE encoder
        >>> loss_fn(latent).backward()
    """

    name = "uniformity"

    def __init__(
        self,
        weight: float = 0.01,
        *,
        official_gather: bool = False,
        double_norm: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(weight, **settings)
        self.official_gather = check_bool("official_gather", official_gather)
        self.double_norm = check_bool("double_norm", double_norm)
        if official_gather and not self.gather_distributed:
            raise ValueError("official_gather=True needs gather_distributed=True")
        if double_norm and self.token != "cls":
            raise ValueError(f"double_norm=True needs token='cls', got {self.token!r}")

    def features(self, step: Step) -> Tensor:
        """``(M * B, D)``, one feature per mask and image."""
        features = super().features(step)
        if not self.double_norm:
            return features
        if step.final_norm is None:
            raise ValueError("double_norm=True needs an encoder with a final norm")
        return in_float32(step.final_norm, features)

    def of_features(self, features: Tensor) -> Tensor:
        """:func:`uniformity` of ``(B, D)``."""
        loss = uniformity(features, gather_distributed=self.gather_distributed)
        if not self.official_gather:
            return loss
        value = loss.detach()
        return value + (loss - value) / world_size()
