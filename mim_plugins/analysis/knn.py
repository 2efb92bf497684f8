"""kNN accuracy of features, by lightly's own kNN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict
from torch import Tensor


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
) -> float:
    """Top-1 accuracy of weighted kNN on l2-normalised features, by lightly's ``knn_predict``.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
    CVPR 2018.

    Args:
        features, labels: ``(n, D)`` floating and ``(n,)`` long, to be classified.
        bank, bank_labels: ``(m, D)`` and ``(m,)``, the neighbours.
        num_classes: Labels are in ``[0, num_classes)``.
        k: Number of neighbours; at most m are taken. Default: 200.
        t: Temperature of the weights. Default: 0.1.
        block: Features classified at once; memory grows with ``block * k * num_classes``.
            Default: 256.

    Returns:
        Accuracy in [0, 1].

    Example:
        >>> eye, labels = torch.eye(3), torch.tensor([0, 1, 2])
        >>> knn_top1(eye, labels, eye, labels, num_classes=3, k=1)
        1.0
    """
    bank = F.normalize(bank, dim=1).T.contiguous()
    correct = 0
    for part, truth in zip(features.split(block), labels.split(block), strict=True):
        ranked = knn_predict(
            F.normalize(part, dim=1), bank, bank_labels, num_classes, min(k, bank.shape[1]), t
        )
        correct += int((ranked[:, 0] == truth).sum())
    return correct / len(features)
