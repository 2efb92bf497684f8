"""Greedy DPP masks on the CPU, from kernels or from pixels, compiled by numba if installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .kernels import LARGEST, MEDIAN_ROWS, ROUNDING

TINY = torch.finfo(torch.float32).tiny

try:
    import numpy as np
    from numba import njit

    INSTALLED = True
except ImportError:
    INSTALLED = False


def usable_for(x: Tensor) -> bool:
    """Whether the functions of this module can run on ``x``."""
    return INSTALLED and x.device.type == "cpu"


def greedy_map(L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor) -> Tensor:
    """Same contract and same float64 arithmetic as ``dpp._greedy_map_torch``."""
    if L.dtype not in (torch.float32, torch.float64):
        L = L.float()
    kernels, order = L.contiguous().numpy(), noise.double().contiguous().numpy()
    chosen = np.empty((len(kernels), k), dtype=np.int64)

    def work(part: slice) -> None:
        _from_kernels(kernels[part], threshold, random_start, order[part], chosen[part])

    _in_threads(work, len(kernels))
    return torch.from_numpy(chosen)


def greedy_from_pixels(
    images: np.ndarray,
    channels: int,
    grid: tuple[int, int],
    side: tuple[int, int],
    cosine: bool,
    bandwidth: float,
    k: int,
    threshold: float,
    noise: np.ndarray,
) -> np.ndarray:
    """Greedy masks of images in one pass.

    What ``unit_features``, ``patch_kernel`` and greedy selection with random start do one after
    the other, in the same precision; but of the N x N similarities only the rows of chosen
    units are computed. Means of float pixels and exponentials may differ by float32's last
    digit.

    Args:
        images: ``(B, P, H, W * channels)``, uint8 or what becomes float32.
        channels: Of each of the P planes, interleaved: 1 for torch's images, C for those that
            have channels last.
        grid: Rows and columns of units, N in all.
        side: Height and width in pixels that a unit is averaged to.
        cosine: Whether the kernel is the cosine one instead of RBF.
        bandwidth: The RBF kernel's, a float; 0 for the median.
        k, threshold, noise: See :func:`greedy_map`; ``noise`` float64.

    Returns:
        ``(B, k)`` int64.
    """
    # Few types, so that little is to be compiled.
    images = np.require(images, np.uint8 if images.dtype == np.uint8 else np.float32, ["C", "W"])
    chosen = np.empty((len(images), k), dtype=np.int64)

    def work(part: slice) -> None:
        constants = channels, *grid, *side, cosine, bandwidth, threshold
        _from_pixels(images[part], *constants, noise[part], chosen[part])

    _in_threads(work, len(images))
    return chosen


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
    def _greedy(L, x, norms, scale, threshold, random_start, noise, chosen):  # type: ignore[no-untyped-def]
        """Fill ``chosen (k,)``, for a kernel ``L (N, N)`` or, if that is empty, of features."""
        num, k = len(noise), len(chosen)
        c = np.empty((k, num))  # c[t, i] is entry t of c_i in Eq. 13
        gain = np.ones(num)  # d_i^2
        for i in range(len(L)):
            gain[i] = L[i, i]
        rest = noise.copy()  # order of random choice; infinite once chosen
        greedy = True
        for t in range(k):
            j = rest.argmin() if t == 0 and random_start else gain.argmax()
            # Gains never grow, so once none is above the threshold the rest is random.
            greedy = greedy and gain[j] > threshold
            if not greedy:
                j = rest.argmin()
            chosen[t] = j
            rest[j] = np.inf
            if not greedy:
                continue
            e = c[t]
            if len(L):
                for i in range(num):
                    e[i] = L[j, i]
            else:
                _row(x, norms, scale == 0, j, e)
                if scale > 0:
                    for i in range(num):
                        e[i] = np.exp(np.float32(e[i]) / scale / np.float32(-2))
                e[j] = 1
            for s in range(t):
                c_j = c[s, j]
                for i in range(num):
                    e[i] -= c_j * c[s, i]
            inverse = 1 / np.sqrt(gain[j])
            for i in range(num):
                e[i] *= inverse  # Eq. 14
                gain[i] -= e[i] * e[i]  # Eq. 15
            gain[j] = -np.inf

    @_compiled
    def _from_kernels(kernels, threshold, random_start, noise, chosen):  # type: ignore[no-untyped-def]
        x, norms = np.empty((0, 0)), np.empty(0)
        for b in range(len(kernels)):
            _greedy(kernels[b], x, norms, 0.0, threshold, random_start, noise[b], chosen[b])

    @_compiled
    def _from_pixels(  # type: ignore[no-untyped-def]
        images, channels, rows, cols, side_h, side_w, cosine, bandwidth, threshold, noise, chosen
    ):
        L, scale = np.empty((0, 0), dtype=np.float32), np.float32(0)
        for b in range(len(images)):
            x = _pooled(images[b], channels, rows, cols, side_h, side_w)
            norms = np.zeros(rows * cols)
            for s in range(len(x)):
                if not cosine:
                    x[s] -= x[s].mean()
                norms += x[s] * x[s]
            if cosine:
                black = np.where(norms == 0, 1.0, 0.0)
                x /= np.sqrt(norms + black)
                if black.any():
                    x = np.concatenate((x, black.reshape(1, -1)))
            else:
                norms *= 1 - ROUNDING
                scale = np.float32(bandwidth**2 if bandwidth else _median(x, norms))
            _greedy(L, x, norms, scale, threshold, True, noise[b], chosen[b])

    @_compiled
    def _pooled(image, channels, rows, cols, side_h, side_w):  # type: ignore[no-untyped-def]
        """``unit_features`` of ``image (P, H, W * channels)``, a unit per column."""
        planes, height, length = image.shape
        tall, wide, width = rows * side_h, cols * side_w, length // channels
        top, left = np.arange(tall) * height // tall, np.arange(wide) * width // wide
        bottom = -(-np.arange(1, tall + 1) * height // tall)
        right = -(-np.arange(1, wide + 1) * width // wide)
        x = np.empty((planes * channels, side_h, side_w, rows, cols))
        line = np.empty(length, dtype=np.float32)
        for plane, v in np.ndindex(planes, tall):
            line[:] = 0
            for y in range(top[v], bottom[v]):
                for i in range(length):
                    line[i] += np.float32(image[plane, y, i])
            for col, w, channel in np.ndindex(cols, side_w, channels):
                u = col * side_w + w
                mean = np.float32(0)
                for i in range(left[u] * channels + channel, right[u] * channels, channels):
                    mean += line[i]
                mean = mean / np.float32(bottom[v] - top[v]) / np.float32(right[u] - left[u])
                mean = min(max(mean, -LARGEST), LARGEST) if np.isfinite(mean) else 0.0
                x[plane * channels + channel, v % side_h, w, v // side_h, col] = mean
        return x.reshape(-1, rows * cols)

    @_compiled
    def _row(x, norms, cosine, j, out):  # type: ignore[no-untyped-def]
        """Cosines of unit j with all, or squared distances, rounded to float32."""
        out[:] = 0
        for s in range(len(x)):
            x_j = x[s, j]
            for i in range(len(out)):
                out[i] += x_j * x[s, i]
        for i in range(len(out)):
            distance = max(norms[j] + norms[i] - 2 * out[i], 0.0)
            out[i] = np.float32(min(max(out[i], -1.0), 1.0) if cosine else distance)

    @_compiled
    def _median(x, norms):  # type: ignore[no-untyped-def]
        """See ``kernels._median_of_pairs``."""
        num = len(norms)
        if num == 1:
            return 1.0
        step = -(-num // MEDIAN_ROWS)
        distances = np.empty((-(-num // step), num))
        for r in range(len(distances)):
            _row(x, norms, False, r * step, distances[r])
        rank = len(distances) + (len(distances) * (num - 1) + 1) // 2
        return max(np.partition(distances.ravel(), rank - 1)[rank - 1], TINY)
