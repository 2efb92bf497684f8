"""The greedy stage of DPPMask on the CPU, compiled by numba where it is installed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

try:
    from numba import njit
except ImportError:
    njit = None


def usable_for(L: Tensor) -> bool:
    """Whether :func:`greedy_map` can run on ``L``."""
    return njit is not None and L.device.type == "cpu" and not torch.compiler.is_compiling()


def greedy_map(
    L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor
) -> Tensor:
    """Same contract as ``dpp._greedy_map_torch``, same float64 arithmetic."""
    kernels = L.detach().float().contiguous().numpy() if L.dtype != torch.float64 else (
        L.detach().contiguous().numpy()
    )
    random_order = noise.detach().double().contiguous().numpy()
    chosen = np.empty((len(kernels), k), dtype=np.int64)
    # Plain threads: numba's own layers do not survive the fork of data-loader workers.
    workers = max(1, min(torch.get_num_threads(), len(kernels)))
    if workers == 1:
        _greedy(kernels, threshold, random_start, random_order, chosen)
    else:
        bounds = np.linspace(0, len(kernels), workers + 1).astype(int)
        with ThreadPoolExecutor(workers) as pool:
            for future in [
                pool.submit(
                    _greedy, kernels[a:b], threshold, random_start, random_order[a:b], chosen[a:b]
                )
                for a, b in zip(bounds[:-1], bounds[1:], strict=True)
            ]:
                future.result()
    return torch.from_numpy(chosen)


if njit is not None:

    @njit(nogil=True, cache=True)
    def _greedy(kernels, threshold, random_start, noise, chosen):  # type: ignore[no-untyped-def]
        batch, num = kernels.shape[0], kernels.shape[1]
        k = chosen.shape[1]
        c = np.empty((k, num))  # c[t, i] is entry t of c_i in Eq. 13
        e = np.empty(num)
        gain = np.empty(num)
        for b in range(batch):
            L = kernels[b]
            rest = noise[b].copy()
            for i in range(num):
                gain[i] = L[i, i]
            greedy = True
            for t in range(k):
                if greedy and (t > 0 or not random_start):
                    j = np.argmax(gain)
                    greedy = gain[j] > threshold
                if not greedy or (t == 0 and random_start):
                    j = np.argmin(rest)
                    greedy = greedy and gain[j] > threshold
                chosen[b, t] = j
                rest[j] = np.inf
                if not greedy:
                    continue
                for i in range(num):
                    e[i] = L[j, i]
                for s in range(t):
                    c_js = c[s, j]
                    for i in range(num):
                        e[i] -= c_js * c[s, i]
                d_j = np.sqrt(gain[j])
                for i in range(num):
                    e[i] /= d_j
                    c[t, i] = e[i]
                    gain[i] -= e[i] * e[i]
                gain[j] = -np.inf
