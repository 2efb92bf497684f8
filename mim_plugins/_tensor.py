"""What a tensor is: its shape, whether its numbers are there at all, what its device can do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._check import first_line


def check_shape(name: str, value: Any, *lengths: int | str) -> None:
    """Of what shape a tensor must be.

    Args:
        name: Of the argument.
        value: The tensor.
        lengths: Numbers, or names such as ``"B"``, of which equal ones are equally long; a name
            like ``"n >= 2"`` tells the least.

    Raises:
        TypeError: If ``value`` is no tensor.
        ValueError: If it has another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    named: dict[str, int] = {}
    fits = value.ndim == len(lengths)
    for length, found in zip(lengths, value.shape, strict=False):
        if isinstance(length, str):
            length, _, least = length.partition(" >= ")
            fits = fits and found >= int(least or 0) and found == named.setdefault(length, found)
        else:
            fits = fits and found == length
    if not fits:
        words = ", ".join(map(str, lengths)) + "," * (len(lengths) == 1)
        raise ValueError(f"{name} must have shape ({words}), got {tuple(value.shape)}")


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
