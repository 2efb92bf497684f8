"""Class labels as data sets have them."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -1  # the label of an unlabelled image


def labelled(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The features and labels of the images that have a label.

    Args:
        features: ``(B, ...)``.
        labels: ``(B,)`` or ``(B, 1)``, of an integer dtype or bool, each in
            ``[0, num_classes)`` or -1: unlabelled.
        num_classes: Number of classes.

    Returns:
        Those features, and their labels as ``(n,)`` long on the same device.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If there is not one per image, or one is out of range.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"labels must be one per image, (B,), got shape {tuple(labels.shape)}")
    if len(labels) != len(features):
        raise ValueError(f"labels must be one per image, {len(features)}, got {len(labels)}")
    labels = labels.to(features.device).long()
    wrong = labels[(labels < IGNORED) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"labels must be in [0, num_classes={num_classes}), or -1 for none, got "
            f"{wrong.unique().tolist()[:5]}"
        )
    known = labels != IGNORED
    return features[known], labels[known]


def some_labelled(
    name: str, features: Tensor, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """As :func:`labelled`; ValueError naming the data ``name`` if it is wrong or none has one."""
    try:
        features, labels = labelled(features, labels, num_classes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    if not torch.numel(labels):
        raise ValueError(f"{name}: labels must not all be -1 (unlabelled)")
    return features, labels
