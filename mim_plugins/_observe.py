"""Looking at a model in training without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


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
def exchanged(holder: dict[str, Any], others: Mapping[str, Any]) -> Iterator[None]:
    """Entries of a dict, such as an object's attributes, are ``others``, and on leaving as before.

    The order of the entries stays.
    """
    before = {key: holder[key] for key in others if key in holder}
    holder.update(others)
    try:
        yield
    finally:
        holder.update(before)
        for key in others.keys() - before.keys():
            holder.pop(key, None)


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


@contextmanager
def glancing(model: nn.Module, images: Tensor) -> Iterator[None]:
    """:func:`observing` within a step: hooks of the model's user do not see what is run here.

    torch's own hooks, which gather shards or compute weights, still run.
    """
    tables = [t for m in model.modules() for t in (m._forward_hooks, m._forward_pre_hooks)]
    before = [dict(table) for table in tables]
    try:
        for table, hooks in zip(tables, before, strict=True):
            for key, hook in hooks.items():
                if not str(getattr(hook, "__module__", "")).startswith("torch."):
                    del table[key]
        with observing(model), uncached_autocast(images.device):
            yield
    finally:
        for table, hooks in zip(tables, before, strict=True):
            table.clear()
            table.update(hooks)


def uncached_autocast(device: torch.device) -> Any:
    """Autocast as it is, but for its cache.

    Of older torch it gives weights that were cast without gradient to the step that follows.
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    dtype = torch.get_autocast_dtype(device.type)
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)
