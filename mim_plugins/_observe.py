"""Looking at a model in training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TOKENS = ("auto", "cls", "mean")


@contextmanager
def preserve_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the random states of Python, numpy and torch (CPU and current GPU) on leaving.

    Args:
        seed: If given, all of them are seeded with it on entering.
    """
    try:
        import numpy as np
    except ImportError:  # without numpy there is no numpy state
        np = None  # type: ignore[assignment]
    state = random.getstate()
    numpy_state = np and np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            if seed is not None:
                random.seed(seed)
                torch.manual_seed(seed)
                if np:
                    np.random.seed(seed)
            yield
    finally:
        random.setstate(state)
        if np:
            np.random.set_state(numpy_state)


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode, and on leaving every mode and random state as before.

    The ``training`` flags are set one by one: a model's own ``train()`` may do more than
    that, and may not bring back modules that are frozen in evaluation mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad(), preserve_rng():
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def pool(output: Tensor, token: str = "auto", prefix_tokens: int = 1) -> Tensor:
    """One feature per image of what an encoder returns.

    Args:
        output: ``(B, D)``, taken as it is; ``(B, D, H, W)``, averaged over positions; or
            ``(B, L, D)`` tokens.
        token: Of tokens take the first (``"cls"``), the mean of the patches (``"mean"``), or
            the first if there is a class token and else the mean (``"auto"``).
        prefix_tokens: Number of tokens that are no patches. Default: 1, the class token.

    Returns:
        ``(B, D)``.

    Raises:
        ValueError: If ``output`` has another shape, or there is no class token to take.
    """
    if output.ndim == 2:
        return output
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    if output.ndim != 3:
        raise ValueError(
            f"features must have shape (B, D), (B, L, D) or (B, D, H, W), got {tuple(output.shape)}"
        )
    if token == "mean" or (token == "auto" and not prefix_tokens):
        return output[:, prefix_tokens:].mean(dim=1)
    if not prefix_tokens:
        raise ValueError("token must be 'mean' or 'auto': the encoder has no class token")
    return output[:, 0]
