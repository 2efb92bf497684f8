"""How good are the features, while they are being trained? Linear probe and kNN."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._check import check_bool, check_int, check_positive
from .knn import knn_top1
from .labels import labelled, some_labelled
from .linear_probe import LinearProbe, adamw

logger = logging.getLogger("mim_plugins")


class FeatureProbe:
    """A linear classifier trained step by step, and kNN, for whoever brings the features.

    Both adapters publish exactly what :meth:`step` and :meth:`evaluate` return.

    Args:
        num_classes: Labels are in ``[0, num_classes)``, or -1 for unlabelled images, which
            are left out everywhere.
        linear: Whether to train the classifier. Default: True.
        optimizer: Of the classifier, called with its parameters. Default: AdamW, learning
            rate 1e-3.
        knn_k: Number of neighbours, at most all. Default: 200.
        knn_t: Temperature of their weights. Default: 0.1.
        knn_normalize: Whether neighbours are found among normalised features. Default: True.

    Raises:
        TypeError, ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        linear: bool = True,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        knn_k: int = 200,
        knn_t: float = 0.1,
        knn_normalize: bool = True,
    ) -> None:
        self.num_classes = None if num_classes is None else check_int("num_classes", num_classes)
        self.linear = check_bool("linear", linear)
        self.make_optimizer = optimizer or adamw
        self.knn_k, self.knn_t = check_int("knn_k", knn_k), check_positive("knn_t", knn_t)
        self.knn_normalize = check_bool("knn_normalize", knn_normalize)
        self.classifier: LinearProbe | None = None
        self._saved: dict[str, Any] | None = None

    def step(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train the classifier on ``(B, D)`` features and ``(B,)`` labels.

        Returns:
            ``probe_loss`` and ``probe_top1`` (%), scalars on the features' device, of the
            batch before the step. Nothing if no image of the batch has a label.

        Raises:
            TypeError, ValueError: If a label is no integer or out of range.
        """
        assert self.num_classes is not None
        features, labels = labelled(features, labels, self.num_classes)
        if not len(labels):
            return {}
        if self.classifier is None:
            self.classifier = LinearProbe(
                features.shape[1], self.num_classes, self.make_optimizer
            ).to(features.device)
            if self._saved is not None:
                for trouble in self.classifier.load_training_state(self._saved):
                    logger.warning("linear probe: %s", trouble)
        loss, top1 = self.classifier.step(features, labels)
        return {"probe_loss": loss, "probe_top1": 100 * top1}

    def evaluate(
        self, features: Tensor, labels: Tensor, bank: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, float]:
        """Classify validation images.

        Args:
            features, labels: ``(n, D)`` and ``(n,)``.
            bank: The same of the images that are the neighbours. Default: no kNN.

        Returns:
            ``linear_top1``, unless nothing was trained, and ``knn_top1``, both in %; NaN
            where features are.

        Raises:
            TypeError, ValueError: If a label is no integer or out of range, or all are -1.
        """
        assert self.num_classes is not None
        features, labels = some_labelled("validation images", features, labels, self.num_classes)
        results = {}
        if self.classifier is not None:
            results["linear_top1"] = 100 * self.classifier.top1(features, labels).item()
        if bank is not None:
            results["knn_top1"] = 100 * knn_top1(
                features, labels, *bank, self.num_classes, self.knn_k, self.knn_t,
                normalize=self.knn_normalize,
            )  # fmt: skip
        return results

    def state(self) -> dict[str, Any] | None:
        """What to save in a checkpoint; None if there is nothing."""
        return self._saved if self.classifier is None else self.classifier.training_state()

    def load(self, state: dict[str, Any] | None) -> None:
        """Continue from a saved :meth:`state` as far as it fits; a warning says what does not."""
        self._saved = state or None
