"""Batch norm over parts of a batch, in the place of several GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._check import check_int


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics of each part of a batch, as if each were on a GPU of its own.

    In MoCo a shuffled batch on several GPUs keeps the encoder from finding a key by the
    statistics of its batch; on one GPU, MoCo's CIFAR demo splits the batch in eight. Parameters
    and buffers are those of ``nn.BatchNorm2d``; running statistics are the mean over the parts,
    and in evaluation it is ``nn.BatchNorm2d``. Images i, i + num_splits, ... are a part.

    Args:
        num_features: C.
        num_splits: Parts of a batch; its size must be a multiple. Default: 8.
        **kwargs: Those of ``nn.BatchNorm2d``.

    Raises:
        TypeError: If ``num_splits`` is no int.
        ValueError: If it is below 1, or a batch no multiple of it.
    """

    def __init__(self, num_features: int, num_splits: int = 8, **kwargs: Any) -> None:
        super().__init__(num_features, **kwargs)
        self.num_splits = check_int("num_splits", num_splits)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_splits={self.num_splits}"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same."""
        parts = self.num_splits
        if parts == 1 or not (self.training or self.running_mean is None):
            return super().forward(x)
        self._check_input_dim(x)
        if len(x) % parts:
            raise ValueError(f"a batch must be a multiple of num_splits={parts}, got {len(x)}")

        def repeated(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.repeat(parts)

        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        mean, var = repeated(self.running_mean), repeated(self.running_var)
        # Parts side by side, as more channels.
        wide = x.reshape(len(x) // parts, parts * x.shape[1], *x.shape[2:])
        weight, bias = repeated(self.weight), repeated(self.bias)
        out = F.batch_norm(wide, mean, var, weight, bias, True, momentum, self.eps)
        with torch.no_grad():
            for own, of_parts in ((self.running_mean, mean), (self.running_var, var)):
                if own is not None and of_parts is not None:
                    own.copy_(of_parts.view(parts, -1).mean(dim=0))
        return out.view_as(x)
