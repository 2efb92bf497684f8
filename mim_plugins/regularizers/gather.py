"""Sums over all ranks that gradients flow through."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes, 1 if ``torch.distributed`` is not initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor of equal shape over all ranks; every rank receives the sum.

    In a single process that is the tensor itself.

    The gradient is that of the sum of all ranks' losses. DistributedDataParallel averages
    gradients, so a loss that every rank computes from such sums trains exactly like the
    same loss in one process with the joined batch.

    ``torch.distributed.nn.functional.all_reduce`` does the same, but is deprecated in torch
    2.15, and its successor does not exist in the torch versions supported here.
    """
    return _SumOverRanks.apply(tensor) if world_size() > 1 else tensor


def gather_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """Rows ``(..., B, D)`` of all ranks, ``(..., W * B, D)``, and where one's own start.

    Rank r's rows are ``r * B`` to ``(r + 1) * B``; every rank must pass the same shape. The
    gradient is that of :func:`sum_over_ranks`, by which this is done: the others' rows are
    zeros in each summand.
    """
    world = world_size()
    if world == 1:
        return tensor, 0
    rank = dist.get_rank()
    *rest, batch, dim = tensor.shape
    placed = tensor.new_zeros(*rest, world, batch, dim)
    placed[..., rank, :, :] = tensor
    return sum_over_ranks(placed).flatten(-3, -2), rank * batch


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
