"""The greedy stage of DPPMask on the CPU, compiled by numba where it is installed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

try:
    import numpy as np
    from numba import njit

    INSTALLED = True
except ImportError:
    INSTALLED = False


def usable_for(L: Tensor) -> bool:
    """Whether :func:`greedy_map` can run on ``L``."""
    return INSTALLED and L.device.type == "cpu" and not torch.compiler.is_compiling()


def greedy_map(L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor) -> Tensor:
    """Same contract and same float64 arithmetic as ``dpp._greedy_map_torch``."""
    if L.dtype not in (torch.float32, torch.float64):
        L = L.float()
    kernels = L.contiguous().numpy()
    order = noise.double().contiguous().numpy()
    chosen = np.empty((len(kernels), k), dtype=np.int64)
    workers = min(torch.get_num_threads(), len(kernels))
    if workers <= 1:
        _greedy(kernels, threshold, random_start, order, chosen)
        return torch.from_numpy(chosen)
    # Plain threads: numba's own thread layers do not survive the fork of data-loader workers.
    with ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(_greedy, kernels[a:b], threshold, random_start, order[a:b], chosen[a:b])
            for a, b in pairwise(np.linspace(0, len(kernels), workers + 1).astype(int))
        ]
        for future in futures:
            future.result()
    return torch.from_numpy(chosen)


if INSTALLED:
    # Reassociation lets the maximum be taken in vector registers; no NaN occurs.
    @njit(nogil=True, cache=True, fastmath={"reassoc", "nnan", "nsz", "contract"})
    def _greedy(kernels, threshold, random_start, noise, chosen):  # type: ignore[no-untyped-def]
        num, k = kernels.shape[1], chosen.shape[1]
        c = np.empty((k, num))  # c[t, i] is entry t of c_i in Eq. 13
        e = np.empty(num)
        gain = np.empty(num)  # d_i^2
        for b in range(len(kernels)):
            L = kernels[b]
            rest = noise[b].copy()  # order of random choice; infinite once chosen
            for i in range(num):
                gain[i] = L[i, i]
            greedy = True
            for t in range(k):
                if t == 0 and random_start:
                    j = np.argmin(rest)
                else:
                    largest = gain[0]
                    for i in range(num):
                        largest = max(largest, gain[i])
                    j = 0
                    while gain[j] < largest:
                        j += 1
                # Gains never grow, so once none is above the threshold the rest is random.
                greedy = greedy and gain[j] > threshold
                if not greedy:
                    j = np.argmin(rest)
                chosen[b, t] = j
                rest[j] = np.inf
                if not greedy:
                    continue
                for i in range(num):
                    e[i] = L[j, i]
                whole = t - t % 4  # four rows of c at a time: e is loaded and stored less often
                for s in range(0, whole, 4):
                    c0, c1, c2, c3 = c[s, j], c[s + 1, j], c[s + 2, j], c[s + 3, j]
                    for i in range(num):
                        e[i] -= (
                            c0 * c[s, i] + c1 * c[s + 1, i] + c2 * c[s + 2, i] + c3 * c[s + 3, i]
                        )
                for s in range(whole, t):
                    c0 = c[s, j]
                    for i in range(num):
                        e[i] -= c0 * c[s, i]
                inverse = 1.0 / np.sqrt(gain[j])
                for i in range(num):  # Eqs. 14 and 15
                    e[i] *= inverse
                    c[t, i] = e[i]
                    gain[i] -= e[i] * e[i]
                gain[j] = -np.inf
