"""Greedy DPP masks on the CPU, compiled by numba where it is installed.

Two entry points: :func:`greedy_map` for given kernels, :func:`greedy_scores` from pixels to
masks in one pass. The latter makes no kernel matrix: greedy selection reads the rows of the
chosen units alone, so only those are computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from .kernels import in_float32_range

try:
    import numpy as np

    from . import _numba_loops as loops

    INSTALLED = True
except ImportError:
    INSTALLED = False


def usable_for(x: Tensor) -> bool:
    """Whether the functions of this module can run on ``x``."""
    return INSTALLED and x.device.type == "cpu" and not torch.compiler.is_compiling()


def greedy_map(L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor) -> Tensor:
    """Same contract as ``dpp._greedy_map_torch``.

    Float64 kernels are treated in float64; others in float32 as long as the gains allow it,
    see ``SMALLEST_FLOAT32_GAIN``, and from there on in float64.
    """
    if L.dtype not in (torch.float32, torch.float64):
        L = L.float()
    kernels = L.contiguous().numpy()
    order = noise.double().contiguous().numpy()
    chosen = np.empty((len(kernels), k), dtype=np.int64)
    _in_threads(
        lambda part: loops.greedy_map(
            kernels[part], threshold, random_start, order[part], chosen[part]
        ),
        len(kernels),
    )
    return torch.from_numpy(chosen)


def greedy_scores(
    images: np.ndarray,
    grid: tuple[int, int],
    sides: tuple[int, int],
    kernel: str,
    bandwidth: float | None,
    k: int,
    threshold: float,
    noise: np.ndarray,
) -> np.ndarray:
    """Greedy masks of images, with random start, as the scores of ``Masking.scores``.

    Args:
        images: ``(B, C, H, W)`` float32, C-contiguous.
        grid: Rows and columns of units.
        sides: Height and width that a unit is averaged to, see ``kernels.unit_sides``.
        kernel, bandwidth: See ``kernels.patch_kernel``.
        k: Number of units to choose.
        threshold: Smallest gain that greedy selection accepts.
        noise: ``(B, N)`` float32, not negative.

    Returns:
        ``(B, N)`` float32: ``noise``, with negative numbers, increasing in the order of
        choice, where a unit was chosen for its gain. Random choice is by smallest noise.
    """
    scores = noise.copy()
    constants = (*grid, *sides, *_kernel(kernel, bandwidth), k, threshold)
    _in_threads(
        lambda part: loops.greedy_scores(images[part], 1, False, *constants, scores[part]),
        len(images),
    )
    return scores


def image_mask(
    image: np.ndarray,
    order: np.ndarray,
    grid: tuple[int, int],
    sides: tuple[int, int],
    kernel: str,
    bandwidth: float | None,
    k: int,
    threshold: float,
    scale: int,
) -> np.ndarray:
    """The mask of one image in one call, for the data pipeline.

    Args:
        image: ``(H, W, C)``, uint8 or what numpy converts to float32.
        order: ``(N,)`` int64, a random permutation of the units: of the units not chosen for
            their gain the last ones in this order are kept.
        grid, sides, kernel, bandwidth, k, threshold: See :func:`greedy_scores`.
        scale: Side of a unit in the mask.

    Returns:
        ``(rows * scale, cols * scale)`` int64, 1 = masked.
    """
    flipped = image.strides[1] < 0  # a mirrored view: turned back, it need not be copied
    if flipped:
        image = image[:, ::-1]
    if image.dtype != np.uint8 or not image.flags.c_contiguous:
        kind = np.uint8 if image.dtype == np.uint8 else np.float32
        image = np.ascontiguousarray(image, dtype=kind)
    constants = (*grid, *sides, *_kernel(kernel, bandwidth), k, threshold, scale)
    return loops.image_mask(image, flipped, order, *constants)


def _kernel(kernel: str, bandwidth: float | None) -> tuple[int, float]:
    """``kernel`` and ``bandwidth`` as the loops take them."""
    number = 0.0 if bandwidth is None else in_float32_range(bandwidth)
    return loops.RBF if kernel == "rbf" else loops.COSINE, number


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
