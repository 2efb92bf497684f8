"""The greedy stage of DPPMask on the CPU, compiled by numba where it is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

try:
    import numpy as np
    from numba import njit

    INSTALLED = True
except ImportError:
    INSTALLED = False


def usable_for(x: Tensor) -> bool:
    """Whether :func:`greedy_map` can run on ``x``."""
    return INSTALLED and x.device.type == "cpu"


def greedy_map(L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor) -> Tensor:
    """Same contract and same float64 arithmetic as ``dpp._greedy_map_torch``."""
    if L.dtype not in (torch.float32, torch.float64):
        L = L.float()
    kernels, order = L.contiguous().numpy(), noise.double().contiguous().numpy()
    chosen = np.empty((len(kernels), k), dtype=np.int64)

    def work(part: slice) -> None:
        _greedy(kernels[part], threshold, random_start, order[part], chosen[part])

    _in_threads(work, len(kernels))
    return torch.from_numpy(chosen)


def _in_threads(work: Callable[[slice], object], batch: int) -> None:
    """Share a batch among as many threads as torch may use."""
    # Plain threads: numba's own thread layers do not survive the fork of data-loader workers.
    threads = min(torch.get_num_threads(), batch)
    if threads <= 1:
        work(slice(0, batch))
        return
    bounds = [round(i * batch / threads) for i in range(threads + 1)]
    first, *others = (slice(a, b) for a, b in pairwise(bounds))
    futures = [_pool(threads - 1).submit(work, part) for part in others]
    work(first)
    for future in futures:
        future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # Starting threads takes a tenth of the time of masking 64 images: they are kept.
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay with the parent


if INSTALLED:

    def _compiled(function: Callable) -> Callable:
        """Without the GIL; on disk for the next process where there is a place to write."""
        options: Any = {"nogil": True, "fastmath": {"contract"}}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no writable directory for the cache
            return njit(**options)(function)

    @_compiled
    def _greedy(kernels, threshold, random_start, noise, chosen):  # type: ignore[no-untyped-def]
        """Fill ``chosen (B, k)`` from ``kernels (B, N, N)`` and ``noise (B, N)``."""
        num, k = kernels.shape[1], chosen.shape[1]
        c = np.empty((k, num))  # c[t, i] is entry t of c_i in Eq. 13
        gain, rest = np.empty(num), np.empty(num)
        for b in range(len(kernels)):
            L = kernels[b]
            rest[:] = noise[b]  # order of random choice; infinite once chosen
            for i in range(num):
                gain[i] = L[i, i]  # d_i^2
            greedy = True
            for t in range(k):
                j = rest.argmin() if t == 0 and random_start else gain.argmax()
                # Gains never grow, so once none is above the threshold the rest is random.
                greedy = greedy and gain[j] > threshold
                if not greedy:
                    j = rest.argmin()
                chosen[b, t] = j
                rest[j] = np.inf
                if not greedy:
                    continue
                e = c[t]
                for i in range(num):
                    e[i] = L[j, i]
                for s in range(t):
                    c_j = c[s, j]
                    for i in range(num):
                        e[i] -= c_j * c[s, i]
                inverse = 1 / np.sqrt(gain[j])
                for i in range(num):
                    e[i] *= inverse  # Eq. 14
                    gain[i] -= e[i] * e[i]  # Eq. 15
                gain[j] = -np.inf
