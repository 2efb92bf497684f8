"""The greedy stage of DPPMask on CUDA: one fused Triton kernel, one program per image."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    INSTALLED = True
except ImportError:
    INSTALLED = False


def usable_for(L: Tensor) -> bool:
    """Whether :func:`greedy_map` can run on ``L``."""
    return INSTALLED and L.is_cuda


def greedy_map(L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor) -> Tensor:
    """Same contract and same float64 arithmetic as ``dpp._greedy_map_torch``."""
    batch, num = L.shape[:2]
    L, noise = L.contiguous(), noise.contiguous()
    c = torch.empty(batch, k, num, dtype=torch.float64, device=L.device)
    chosen = torch.empty(batch, k, dtype=torch.long, device=L.device)
    block = triton.next_power_of_2(num)
    _greedy[(batch,)](
        L,
        noise,
        c,
        chosen,
        threshold,
        NUM=num,
        K=k,
        RANDOM_START=random_start,
        BLOCK=block,
        ROWS=max(1, min(16, 8192 // block)),
        num_warps=4 if block <= 512 else 8,
    )
    return chosen


if INSTALLED:

    @triton.jit
    def _greedy(  # type: ignore[no-untyped-def]
        L,
        noise,
        c,
        chosen,
        threshold,
        NUM: tl.constexpr,
        K: tl.constexpr,
        RANDOM_START: tl.constexpr,
        BLOCK: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        image = tl.program_id(0).to(tl.int64)
        L += image * NUM * NUM
        c += image * K * NUM  # c[t, i] is entry t of c_i in Eq. 13
        items = tl.arange(0, BLOCK)
        valid = items < NUM
        gain = tl.load(L + items * (NUM + 1), mask=valid, other=0.0).to(tl.float64)  # d_i^2
        gain = tl.where(valid, gain, float("-inf"))
        # Order of random choice; infinite once chosen.
        rest = tl.load(noise + image * NUM + items, mask=valid, other=float("inf"))
        greedy = True
        for t in range(K):
            j = tl.argmax(gain, axis=0)
            if RANDOM_START:
                j = tl.where(t == 0, tl.argmin(rest, axis=0), j)
            largest = tl.sum(tl.where(items == j, gain, 0.0), axis=0)
            # Gains never grow, so once none is above the threshold the rest is random.
            greedy = greedy & (largest > threshold)
            j = tl.where(greedy, j, tl.argmin(rest, axis=0))
            tl.store(chosen + image * K + t, j.to(tl.int64))
            rest = tl.where(items == j, float("inf"), rest)
            if greedy:
                e = tl.load(L + j * NUM + items, mask=valid, other=0.0).to(tl.float64)
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
                tl.debug_barrier()  # the next step reads c across threads
                gain = tl.where(items == j, float("-inf"), gain - e * e)  # Eq. 15
