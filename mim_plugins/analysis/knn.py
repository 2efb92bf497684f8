"""kNN accuracy of features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import some_labelled


@torch.no_grad()
def knn_top1(
    features: Tensor,
    labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    k: int = 200,
    t: float = 0.1,
    block: int = 256,
    *,
    normalize: bool = True,
) -> float:
    """Top-1 accuracy of weighted kNN.

    Each neighbour votes for its label with weight ``exp(cosine / t)``, as lightly's
    ``knn_predict``: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", CVPR 2018. Or, without normalisation, ``exp(-distance / t)``: with a large
    t the equal votes of W-MSE (Ermolov et al., ICML 2021).

    Args:
        features, labels: ``(n, D)`` floating and ``(n,)`` integer, to be classified.
        bank, bank_labels: ``(m, D)`` and ``(m,)``, the neighbours. Images labelled -1 are
            left out on both sides.
        num_classes: Labels are in ``[0, num_classes)``, or -1.
        k: Number of neighbours; at most m are taken. Default: 200.
        t: Temperature of the weights. Default: 0.1.
        block: Features classified at once; memory grows with ``block * m``. Default: 256.
        normalize: Whether features are l2-normalised and compared by their cosine, or taken as
            they are and compared by their Euclidean distance. Default: True.

    Returns:
        Accuracy in [0, 1]; NaN if a feature is NaN or infinite.

    Raises:
        TypeError, ValueError: If a label is no integer or out of range, or all are -1.

    Example:
        >>> eye, labels = torch.eye(3), torch.tensor([0, 1, 2])
        >>> knn_top1(eye, labels, eye, labels, num_classes=3, k=1)
        1.0
    """
    features, labels = some_labelled("validation images", features, labels, num_classes)
    bank, bank_labels = some_labelled("neighbours", bank, bank_labels, num_classes)
    if not (features.isfinite().all() and bank.isfinite().all()):
        return math.nan
    if normalize:
        bank, features = F.normalize(bank, dim=1), F.normalize(features, dim=1)
    correct = 0
    for part, truth in zip(features.split(block), labels.split(block), strict=True):
        nearness = part @ bank.T if normalize else -torch.cdist(part, bank)
        nearest, index = nearness.topk(min(k, len(bank)))
        # Relative to the nearest, so that no weight overflows.
        weights = ((nearest - nearest[:, :1]) / t).exp()
        votes = weights.new_zeros(len(part), num_classes).scatter_add_(
            1, bank_labels[index], weights
        )
        correct += int((votes.argmax(dim=1) == truth).sum())
    return correct / len(features)
