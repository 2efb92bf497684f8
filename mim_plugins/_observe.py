"""Looking at a model in training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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
    numpy_state: Any = np and np.random.get_state()
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
