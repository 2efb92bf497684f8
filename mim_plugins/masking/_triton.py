"""DPP masks on CUDA: greedy ones, and both loops of exact samples, as fused Triton kernels.

One program per image; without them a batch takes some thousands of launches. Where a kernel
cannot be built or run (Triton asks for a C compiler and Python's headers) there is one warning,
and the PyTorch path takes over.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    INSTALLED = True
except ImportError:
    INSTALLED = False

# Of an item, where all that are left lie in the span of those drawn: above rounding.
SMALLEST_PROBABILITY = 1e-10
# A program holds a few rows of N float64 in registers; longer ones spill, and are slow to build.
LARGEST_N = 8192

_failed = False  # a kernel could not be built or launched: not tried again


def usable_for(L: Tensor) -> bool:
    """Whether the kernels can run on ``L``, ``(B, N, ...)``, N the number of items."""
    if not INSTALLED or not L.is_cuda or _failed:
        return False
    if L.shape[1] > LARGEST_N:
        _warn(f"{L.shape[1]} masking units are more than the {LARGEST_N} of the Triton kernels")
        return False
    return True


@cache
def _warn(reason: str) -> None:
    warnings.warn(f"{reason}; PyTorch takes over, slower on a GPU", RuntimeWarning, stacklevel=4)


def greedy_map(
    L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor, num_sets: int = 1
) -> Tensor | None:
    """Same contract and same float64 arithmetic as ``dpp._greedy_map_torch``.

    None if the kernel cannot run.
    """
    batch, num = L.shape[:2]
    c = torch.empty(num_sets * batch, k, num, dtype=torch.float64, device=L.device)
    gains = torch.empty(num_sets * batch, num, dtype=torch.float64, device=L.device)
    chosen = torch.empty(num_sets * batch, k, dtype=torch.long, device=L.device)
    arguments = (L.contiguous(), noise.contiguous(), c, gains, chosen, threshold, batch)
    own = settings(num, k, RANDOM_START=random_start, SETS=num_sets)
    return chosen if launch(_greedy, batch, arguments, own) else None


def settings(num: int, k: int, **own: Any) -> dict[str, Any]:
    """What a kernel on items is compiled for: also columns and rows of c held at a time."""
    block = triton.next_power_of_2(num)
    return {"NUM": num, "K": k, "BLOCK": block, "ROWS": max(1, min(16, 8192 // block)), **own}


def sample_eigenvectors(log_eigenvalues: Tensor, k: int, uniform: Tensor) -> Tensor | None:
    """Same contract as ``dpp._sample_eigenvectors``; None if the kernel cannot run."""
    batch, num = log_eigenvalues.shape
    log_e = log_eigenvalues.new_empty(batch, num + 1, k + 1)
    drawn = torch.empty(batch, k, dtype=torch.long, device=log_e.device)
    arguments = (log_eigenvalues.contiguous(), uniform.contiguous(), log_e, drawn, batch)
    done = launch(_eigenvectors, batch, arguments, eigenvector_settings(num, k))
    return drawn if done else None


def eigenvector_settings(num: int, k: int) -> dict[str, Any]:
    """What the kernel on eigenvalues is compiled for."""
    return {"NUM": num, "K": k, "BLOCK": triton.next_power_of_2(k + 1)}


def sample_projection(K: Tensor, k: int, clocks: Tensor) -> Tensor | None:
    """Same contract as ``dpp._sample_projection``; None if the kernel cannot run."""
    batch, num = K.shape[:2]
    c = K.new_empty(batch, k, num)
    chosen = torch.empty(batch, k, dtype=torch.long, device=K.device)
    arguments = (K.contiguous(), clocks.contiguous(), c, chosen, batch)
    own = settings(num, k, SMALLEST=SMALLEST_PROBABILITY)
    return chosen if launch(_projection, batch, arguments, own) else None


def launch(kernel: Any, programs: int, arguments: tuple, settings: dict[str, Any]) -> bool:
    """Whether ``kernel`` was launched, on the device of its first argument.

    If not, no kernel of this package is tried again, and a RuntimeWarning says why.
    """
    global _failed
    settings = {**settings, "num_warps": 4 if settings["BLOCK"] <= 512 else 8}
    if torch.compiler.is_compiling():  # traced, and compiled by Inductor
        kernel[(programs,)](*arguments, **settings)
        return True
    try:
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs,)](*arguments, **settings)
    except Exception as error:  # compilers, drivers and Triton raise errors of many kinds
        _failed = True
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        _warn(
            f"Triton, which needs a C compiler (gcc) and Python's headers (python3-dev), cannot "
            f"run the DPP kernels ({reason})"
        )
        return False
    return True


if INSTALLED:

    @triton.jit
    def _conditioned(  # type: ignore[no-untyped-def]
        row, c, j, t, gain, largest, NUM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
    ):
        """Gains once item j, row ``row`` of L, is chosen as number t; its e goes to row t of c."""
        items = tl.arange(0, BLOCK)
        valid = items < NUM
        e = tl.load(row + items, mask=valid, other=0.0).to(tl.float64)
        for start in range(0, t, ROWS):
            rows = start + tl.arange(0, ROWS)
            earlier = rows < t
            c_j = tl.load(c + rows * NUM + j, mask=earlier, other=0.0)
            c_i = tl.load(
                c + rows[:, None] * NUM + items[None, :],
                mask=earlier[:, None] & valid[None, :],
                other=0.0,
            )
            e -= tl.sum(c_j[:, None] * c_i, axis=0)
        e /= tl.sqrt(largest)  # Eq. 14
        tl.store(c + t * NUM + items, e, mask=valid)
        return gain - e * e  # Eq. 15

    @triton.jit
    def _greedy(  # type: ignore[no-untyped-def]
        L,
        noise,
        c,
        gains,
        chosen,
        threshold,
        batch,
        NUM: tl.constexpr,
        K: tl.constexpr,
        RANDOM_START: tl.constexpr,
        SETS: tl.constexpr,
        BLOCK: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        image = tl.program_id(0).to(tl.int64)
        L += image * NUM * NUM
        items = tl.arange(0, BLOCK)
        valid = items < NUM
        diagonal = tl.load(L + items * (NUM + 1), mask=valid, other=0.0).to(tl.float64)
        # Order of random choice; infinite once chosen.
        rest = tl.load(noise + image * NUM + items, mask=valid, other=float("inf"))
        for turn in range(K * SETS):
            t = turn // SETS
            m = turn % SETS
            if t % 2 == 1:
                m = SETS - 1 - m
            row = m * batch + image  # of the results
            c_m = c + row * K * NUM  # c_m[t, i] is entry t of c_i in Eq. 13
            gain = diagonal  # d_i^2
            if t > 0:
                gain = tl.load(gains + row * NUM + items, mask=valid, other=0.0)
            gain = tl.where(rest == float("inf"), float("-inf"), gain)
            j = tl.argmax(gain, axis=0)
            if RANDOM_START:
                j = tl.where(t == 0, tl.argmin(rest, axis=0), j)
            largest = tl.sum(tl.where(items == j, gain, 0.0), axis=0)
            greedy = largest > threshold
            j = tl.where(greedy, j, tl.argmin(rest, axis=0))
            tl.store(chosen + row * K + t, j.to(tl.int64))
            rest = tl.where(items == j, float("inf"), rest)
            if greedy:
                gain = _conditioned(L + j * NUM, c_m, j, t, gain, largest, NUM, BLOCK, ROWS)
            else:
                # Gains never grow, so once none is above the threshold the rest is random.
                gain = tl.full([BLOCK], float("-inf"), tl.float64)
            tl.store(gains + row * NUM + items, gain, mask=valid)
            tl.debug_barrier()  # the next turn reads c and gains across threads

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
