"""A linear classifier trained beside a model, on features it cannot change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._check import check_int


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with learning rate 1e-3 and without weight decay, the probes' default."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)


class LinearProbe(nn.Module):
    """Batch normalisation without parameters, then a linear classifier, as MAE's probe.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, appendix A.1;
    trained online as in U-MAE, appendix B.5. It starts at zero (the problem is convex), so
    nothing is drawn at random.

    Args:
        dim: Dimension of the features.
        num_classes: Number of classes.
        optimizer: Called with the parameters, gives their optimizer. Default: AdamW with
            learning rate 1e-3 and without weight decay.

    Raises:
        ValueError: If ``dim`` or ``num_classes`` is not positive.

    Example:
        >>> probe = LinearProbe(2, 2)
        >>> for _ in range(20):
        ...     loss, top1 = probe.step(torch.eye(2), torch.tensor([1, 0]))
        >>> probe.top1(torch.eye(2), torch.tensor([1, 0])).item()
        1.0
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__()
        check_int("dim", dim)
        check_int("num_classes", num_classes)
        # float32, whatever the default is while a model of another precision trains
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6, dtype=torch.float32)
        # skip_init: the constructor of Linear would draw weights.
        self.classifier = nn.utils.skip_init(nn.Linear, dim, num_classes, dtype=torch.float32)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.optimizer = (optimizer or adamw)(self.classifier.parameters())

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of features ``(B, dim)``."""
        # One image has no variance: it is normalised by the running statistics.
        self.norm.train(self.training and len(features) > 1)
        return self.classifier(self.norm(features.float()))

    @torch.enable_grad()
    def step(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Train on one batch; the features are detached.

        Args:
            features: ``(B, dim)``.
            labels: ``(B,)`` long, in ``[0, num_classes)``.

        Returns:
            Cross entropy and top-1 accuracy in [0, 1] before the update, detached scalars
            on the features' device.
        """
        self.train()
        logits = self(features.detach())
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), _top1(logits.detach(), labels)

    @torch.no_grad()
    def top1(self, features: Tensor, labels: Tensor) -> Tensor:
        """Top-1 accuracy in [0, 1], a scalar, with running statistics; NaN if a logit is."""
        self.eval()
        return _top1(self(features), labels)

    def training_state(self) -> dict[str, Any]:
        """Parameters, statistics and optimizer, to resume from."""
        return {"probe": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> list[str]:
        """Resume from :meth:`training_state`, as far as it fits.

        Returns:
            What does not fit, in words, and starts anew: the probe if the number of classes
            or the features have changed, or its optimizer.
        """
        weight = state.get("probe", {}).get("classifier.weight")
        shape = None if weight is None else tuple(weight.shape)
        if shape != tuple(self.classifier.weight.shape):
            return [
                f"the checkpoint's has weights {shape}, this one "
                f"{tuple(self.classifier.weight.shape)}: it starts anew"
            ]
        self.load_state_dict(state["probe"])
        # Optimizers keep what they are given.
        saved = copy.deepcopy(state["optimizer"])
        groups = [
            [set(group) for group in each["param_groups"]]
            for each in (saved, self.optimizer.state_dict())
        ]
        if groups[0] != groups[1]:
            return ["the checkpoint's has another optimizer: its optimizer starts anew"]
        self.optimizer.load_state_dict(saved)
        return []


def _top1(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows whose largest logit is their label's; NaN if a logit is NaN."""
    share = (logits.argmax(dim=1) == labels).float().mean()
    return torch.where(logits.isnan().any(), torch.nan, share)
