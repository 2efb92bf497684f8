"""DPPMask: visible patches as a sample of a determinantal point process.

Xu et al., "DPPMask: Masked Image Modeling with Determinantal Point Processes",
arXiv 2303.12736. Equation numbers are those of its supplement.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _numba
from .base import Masking
from .kernels import FEATURES, check_kernel, patch_kernel, unit_features

# Gains below this are rounding: the patch lies in the span of those already chosen.
SMALLEST_GAIN = 1e-12


def check_tau(tau: float) -> float:
    """Return ``tau`` if it lies in [0, 1], else raise ValueError."""
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau must be in [0, 1], got {tau}")
    return float(tau)


class DPPMasking(Masking):
    """Diverse visible patches: greedy MAP of a DPP, made random by ``tau`` (DPPMask).

    The first visible patch is uniformly random. Then the patch that enlarges the
    determinant of the visible patches' similarities most is added, as long as it enlarges
    it by a factor above ``tau``; the rest are uniformly random. ``tau=1`` is random
    masking, bit for bit that of :class:`RandomMasking` under the same seed; ``tau=0`` is
    greedy to the end.

    Args:
        mask_ratio, patch_size, mask_unit: See :class:`Masking`.
        tau: Smallest gain ``d_j^2`` that greedy selection still accepts, in [0, 1].
            Default: 0.25, which on photographs leaves about half of the visible patches
            at ``mask_ratio`` 0.75 to the determinant.
        kernel: ``"rbf"`` or ``"cosine"``, see :func:`patch_kernel`. Default: ``"rbf"``.
        bandwidth: Bandwidth of the RBF kernel. Default: the image's median distance.
        features: ``"pixels"``, ``"pooled"`` or a callable, see :func:`unit_features`.
            Default: ``"pixels"``.

    Raises:
        TypeError: If ``features`` is neither a name nor callable.
        ValueError: If an argument is out of range.

    Example:
        >>> masking = DPPMasking(mask_ratio=0.75, patch_size=8, tau=0.0)
        >>> masking(torch.rand(2, 3, 64, 64)).ids_keep.shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        mask_ratio: float = 0.75,
        patch_size: int = 16,
        mask_unit: int | None = None,
        tau: float = 0.25,
        kernel: str = "rbf",
        bandwidth: float | None = None,
        features: str | Callable[[Tensor], Tensor] = "pixels",
    ) -> None:
        super().__init__(mask_ratio, patch_size, mask_unit)
        self.tau = check_tau(tau)
        check_kernel(kernel, bandwidth)
        if isinstance(features, str):
            if features not in FEATURES:
                raise ValueError(
                    f"features must be one of {FEATURES} or a callable, got {features!r}"
                )
        elif not callable(features):
            raise TypeError(
                f"features must be one of {FEATURES} or a callable, got {features!r}"
            )
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.features = features

    def scores(
        self,
        images: Tensor,
        grid: tuple[int, int],
        num_keep: int,
        noise: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        if self.tau == 1.0:
            return noise
        features = unit_features(images, grid, self.features)
        similarity = patch_kernel(features, self.kernel, self.bandwidth)
        ids_keep = greedy_map(similarity, num_keep, self.tau, noise=noise)
        # Chosen units first, in the order of their choice; the others as random masking.
        order = torch.arange(-num_keep, 0, device=noise.device, dtype=noise.dtype)
        return noise.scatter(1, ids_keep, order.expand_as(ids_keep))


@torch.no_grad()
def greedy_map(
    L: Tensor,
    k: int,
    tau: float = 0.0,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Choose k items per kernel greedily by their gain in determinant (Eqs. 13-15).

    The gain of item j is ``d_j^2 = det(L_{Y+j}) / det(L_Y)``. Items are added in order of
    largest gain while that gain exceeds ``tau`` (and rounding error); the rest are
    uniformly random. Arithmetic is float64 whatever the dtype of ``L``.

    Args:
        L: ``(B, N, N)`` symmetric positive semi-definite kernels.
        k: Number of items, in 1..N.
        tau: Smallest accepted gain, in [0, 1]; meant for unit-diagonal kernels, where
            every gain but the first is at most 1. Default: 0, greedy to the end.
        random_start: Draw the first item uniformly (DPPMask). If False, it is the one with
            the largest diagonal element (the usual greedy MAP). Default: True.
        generator: Source of randomness, on the device of ``L``. Default: torch's own.
        noise: ``(B, N)`` uniform random numbers to use instead of drawing them. Random
            items are taken in increasing order of their noise.

    Returns:
        ``(B, k)`` long, in the order of choice, without repetition.

    Raises:
        ValueError: If an argument has the wrong shape or range.
    """
    if L.ndim != 3 or L.shape[1] != L.shape[2]:
        raise ValueError(f"L must have shape (B, N, N), got {tuple(L.shape)}")
    batch, num = L.shape[:2]
    if not 1 <= k <= num:
        raise ValueError(f"k must be in 1..N={num}, got {k}")
    threshold = max(check_tau(tau), SMALLEST_GAIN)
    if noise is None:
        noise = torch.rand(batch, num, device=L.device, generator=generator)
    elif noise.shape != (batch, num):
        raise ValueError(f"noise must have shape {(batch, num)}, got {tuple(noise.shape)}")
    if _numba.usable_for(L):
        return _numba.greedy_map(L, k, threshold, random_start, noise)
    return _greedy_map_torch(L, k, threshold, random_start, noise)


def _greedy_map_torch(
    L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor
) -> Tensor:
    batch, num = L.shape[:2]
    rows = torch.arange(batch, device=L.device)
    gain = L.diagonal(dim1=1, dim2=2).double()  # d_i^2 with nothing chosen
    rest = noise.clone()  # order of random choice; infinite once chosen
    c = gain.new_zeros(batch, num, k)  # c[b, i, :t] is c_i of Eq. 13
    chosen = torch.empty(batch, k, dtype=torch.long, device=L.device)
    for t in range(k):
        largest, j = gain.max(dim=1)
        greedy = largest > threshold
        if t == 0 and random_start:
            j = rest.argmin(dim=1)
            largest = gain[rows, j]
            greedy = largest > threshold
        else:
            j = torch.where(greedy, j, rest.argmin(dim=1))
        chosen[:, t] = j
        rest[rows, j] = torch.inf
        # e_i = (L_ji - <c_j, c_i>) / d_j (Eq. 14) and d_i^2 <- d_i^2 - e_i^2 (Eq. 15)
        c_j = c[rows, j, :t]
        e = L[rows, j].double() - (c[:, :, :t] @ c_j[:, :, None])[:, :, 0]
        e = e / torch.where(greedy, largest, 1.0).sqrt()[:, None]
        c[:, :, t] = e
        # Gains never grow, so once none is above the threshold the image stays random.
        gain = torch.where(greedy[:, None], gain - e * e, -torch.inf)
        gain[rows, j] = -torch.inf
    return chosen
