"""What a tensor's device can do, and whether its numbers are there at all."""

from __future__ import annotations

import torch
from torch import Tensor

from ._check import first_line


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without it (Apple's MPS)."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def is_traced(x: Tensor) -> bool:
    """Whether ``x`` stands for numbers that are not there, or not to be read by other code.

    So under ``torch.compile`` and ``torch.export``, ``jit.trace`` (which mmengine's complexity
    tool uses), ``vmap``, and for fake tensors and other subclasses.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or x.is_meta
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def check_device(name: str) -> torch.device:
    """A device that works.

    Raises:
        ValueError: If it is not there.
    """
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used: {first_line(error)}") from error
