"""Class means as a linear classifier: U-MAE's theoretical probe (section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._tensor import check_shape


@torch.no_grad()
def mean_classifier(
    features: Tensor, labels: Tensor, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Weights ``W_y = E[f(x) | y]``: row y is the mean feature of class y.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022, section 4.1. There is no bias.

    Args:
        features: ``(n, D)`` floating, n >= 1.
        labels: ``(n,)`` integers, any values.
        normalize: l2-normalise the features first, as the paper's proofs take them and the
            uniformity loss does. Default: True.

    Returns:
        The weights ``(c, D)`` float64 and the label of each row ``(c,)``, ascending.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> weights, classes = mean_classifier(torch.eye(2), torch.tensor([7, 3]))
        >>> classes
        tensor([3, 7])
    """
    features = _checked(features, labels, normalize)
    classes, rows = labels.unique(return_inverse=True)
    sums = features.new_zeros(len(classes), features.shape[1]).index_add_(0, rows, features)
    return sums / torch.bincount(rows)[:, None], classes


@torch.no_grad()
def mean_classifier_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    normalize: bool = True,
) -> float:
    """Share of test features for which ``argmax_y W_y . f(x)`` is the label, in [0, 1].

    W comes from the training features, see :func:`mean_classifier`. A test label that does
    not occur among the training labels counts as an error.

    Args:
        train_features, test_features: ``(n, D)`` and ``(m, D)`` floating.
        train_labels, test_labels: ``(n,)`` and ``(m,)`` integers.
        normalize: l2-normalise all features first. Default: True.

    Raises:
        ValueError: If shapes do not fit.
    """
    test_features = _checked(test_features, test_labels, normalize)
    weights, classes = mean_classifier(train_features, train_labels, normalize)
    check_shape("test_features", test_features, "n", weights.shape[1])
    scores = test_features @ weights.T
    return (classes[scores.argmax(dim=1)] == test_labels).double().mean().item()


def _checked(features: Tensor, labels: Tensor, normalize: bool) -> Tensor:
    """The features as float64, normalised if asked for; ValueError if shapes do not fit."""
    check_shape("features", features, "n >= 1", "D")
    check_shape("labels", labels, len(features))
    return F.normalize(features.double(), dim=1) if normalize else features.double()
