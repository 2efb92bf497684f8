"""Exact k-DPP samples on CUDA: the two loops of ``dpp.sample_kdpp`` as Triton kernels.

One program per image, float64. Without them a batch takes some thousands of launches.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .._versions import numbers
from ._triton import INSTALLED, launch, tile

# Of an item, where all that are left lie in the span of those drawn: above rounding.
SMALLEST_PROBABILITY = 1e-10

if INSTALLED:
    import triton
    import triton.language as tl

    from ._triton import _conditioned


@cache
def warn_if_eigh_is_a_loop(torch_version: str) -> None:
    """Where ``eigh`` on CUDA takes the matrices of a batch, larger than 32 x 32, one by one.

    Fixed in torch 2.12, see https://github.com/pytorch/pytorch/issues/175585.
    """
    if numbers(torch_version) < [2, 12, 0]:
        warnings.warn(
            f"torch {torch_version} decomposes the kernels of a batch one by one on a GPU, which "
            "makes method='exact' slow; torch>=2.12 does not",
            RuntimeWarning,
            stacklevel=4,
        )


def sample_eigenvectors(log_eigenvalues: Tensor, k: int, uniform: Tensor) -> Tensor | None:
    """Same contract as ``dpp._sample_eigenvectors``; None if the kernel cannot run."""
    batch, num = log_eigenvalues.shape
    log_e = log_eigenvalues.new_empty(batch, num + 1, k + 1)
    drawn = torch.empty(batch, k, dtype=torch.long, device=log_e.device)
    arguments = (log_eigenvalues.contiguous(), uniform.contiguous(), log_e, drawn, batch)
    done = launch(_eigenvectors, batch, arguments, eigenvector_settings(num, k))
    return drawn if done else None


def eigenvector_settings(num: int, k: int) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return {"NUM": num, "K": k, "BLOCK": triton.next_power_of_2(k + 1)}


def sample_projection(K: Tensor, k: int, clocks: Tensor) -> Tensor | None:
    """Same contract as ``dpp._sample_projection``; None if the kernel cannot run."""
    batch, num = K.shape[:2]
    c = K.new_empty(batch, k, num)
    chosen = torch.empty(batch, k, dtype=torch.long, device=K.device)
    arguments = (K.contiguous(), clocks.contiguous(), c, chosen, batch)
    done = launch(_projection, batch, arguments, projection_settings(num, k))
    return chosen if done else None


def projection_settings(num: int, k: int) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return {"NUM": num, "K": k, "SMALLEST": SMALLEST_PROBABILITY, **tile(num)}


if INSTALLED:

    @triton.jit
    def _eigenvectors(  # type: ignore[no-untyped-def]
        log_eigenvalues,
        uniform,
        log_e,
        drawn,
        batch,
        NUM: tl.constexpr,
        K: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        image = tl.program_id(0).to(tl.int64)
        log_eigenvalues += image * NUM
        log_e += image * (NUM + 1) * (K + 1)  # log_e[n, r] is log e_r(lambda_1..lambda_n)
        degrees = tl.arange(0, BLOCK)
        valid = degrees <= K
        row = tl.where(degrees == 0, 0.0, float("-inf")).to(tl.float64)
        tl.store(log_e + degrees, row, mask=valid)
        tl.debug_barrier()
        for n in range(1, NUM + 1):
            above = log_e + (n - 1) * (K + 1) + degrees - 1
            without = row
            with_n = tl.load(above, mask=valid & (degrees > 0), other=float("-inf"))
            with_n += tl.load(log_eigenvalues + n - 1)
            larger = tl.maximum(without, with_n)
            smaller = tl.minimum(without, with_n)
            row = larger + tl.log(1.0 + tl.exp(smaller - larger))
            row = tl.where(larger == float("-inf"), larger, row)
            tl.store(log_e + n * (K + 1) + degrees, row, mask=valid)
            tl.debug_barrier()  # the next row is read one to the left
        missing = K
        for step in range(NUM):
            n = NUM - step
            if missing > 0:
                log_with = tl.load(log_eigenvalues + n - 1)
                log_with += tl.load(log_e + (n - 1) * (K + 1) + missing - 1)
                log_all = tl.load(log_e + n * (K + 1) + missing)
                if tl.log(tl.load(uniform + (n - 1) * batch + image)) < log_with - log_all:
                    tl.store(drawn + image * K + missing - 1, (n - 1).to(tl.int64))
                    missing -= 1

    @triton.jit
    def _projection(  # type: ignore[no-untyped-def]
        L,
        clocks,
        c,
        chosen,
        batch,
        NUM: tl.constexpr,
        K: tl.constexpr,
        SMALLEST: tl.constexpr,
        BLOCK: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        image = tl.program_id(0).to(tl.int64)
        L += image * NUM * NUM
        c += image * K * NUM
        items = tl.arange(0, BLOCK)
        valid = items < NUM
        probability = tl.load(L + items * (NUM + 1), mask=valid, other=0.0)
        taken = ~valid
        for t in range(K):
            clock = tl.load(clocks + (t * batch + image) * NUM + items, mask=valid, other=1.0)
            probability = tl.maximum(probability, SMALLEST)
            rate = tl.where(taken, -1.0, probability / clock)
            j = tl.argmax(rate, axis=0)
            tl.store(chosen + image * K + t, j.to(tl.int64))
            largest = tl.sum(tl.where(items == j, probability, 0.0), axis=0)
            taken = taken | (items == j)
            probability = _conditioned(L + j * NUM, c, j, t, probability, largest, NUM, BLOCK, ROWS)
            tl.debug_barrier()  # the next step reads c across threads
