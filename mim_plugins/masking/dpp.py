"""DPPMask: visible patches as a sample of a determinantal point process.

Xu et al., "DPPMask: Masked Image Modeling with Determinantal Point Processes",
arXiv 2303.12736. Equation numbers are those of its supplement.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from .._check import check_choice, check_share
from .._tensor import check_shape, is_traced, widest_dtype
from .._versions import numbers
from . import _numba, _triton, frozen
from .base import Grid, Masking
from .kernels import (
    ENCODER,
    FEATURES,
    check_kernel,
    in_range,
    patch_kernel,
    unit_features,
    unit_sides,
    unit_vectors,
)

if TYPE_CHECKING:
    import numpy as np

# Of the largest diagonal element. Gains below this are rounding: the patch lies in the span
# of those already chosen.
SMALLEST_GAIN = 1e-12
_EIGENVALUE_FLOOR = 1e-10  # of the mean eigenvalue

METHODS = ("greedy", "exact")
_ALLOWED = (
    f"one of {(*FEATURES, ENCODER)}, '{frozen.PREFIX}' and the name of a model, or a callable"
)
DEFAULT_TAU = 0.5


class DPPMasking(Masking):
    """Diverse visible patches: a sample, or the greedy mode, of a DPP (DPPMask).

    ``method="greedy"``: the first visible patch is uniformly random. Then the patch that
    enlarges the determinant of the visible patches' similarities most is added, as long as
    it enlarges it by a factor above ``tau``; the rest are uniformly random. ``tau=1`` is
    random masking, bit for bit that of :class:`RandomMasking` under the same seed;
    ``tau=0`` is greedy to the end.

    ``method="exact"``: an exact sample of the k-DPP, see :func:`sample_kdpp`. Slower.
    With ``kernel="cosine"`` and K <= D < N for K visible of N patches with D features it is
    :func:`sample_kdpp_dual`'s, which is faster.

    Args:
        method: ``"greedy"`` or ``"exact"``. Default: ``"greedy"``.
        tau: Smallest gain ``d_j^2`` that greedy selection still accepts, in [0, 1]; None
            for ``method="exact"``. Default: 0.5, which on photographs leaves about a third
            of the visible patches at ``mask_ratio`` 0.75 to the determinant.
        kernel: ``"rbf"`` or ``"cosine"``, see :func:`patch_kernel`. Default: ``"rbf"``.
        bandwidth: Bandwidth of the RBF kernel. Default: the image's median distance.
        features: ``"pixels"``, ``"pooled"`` (a unit's pixels averaged down to 4 x 4),
            ``"encoder"`` (patch tokens of the model that is masked, as it is now, of the
            whole image), ``"timm:<name>"`` (patch tokens of a frozen model of timm) or a
            callable, see :func:`unit_features` and docs/dppmask.md. Default: ``"pooled"``.
        **settings: Those of :class:`Masking`.

    Raises:
        TypeError: If ``features`` is neither a name nor callable.
        ValueError: If an argument is out of range.
        ImportError: If ``features`` names a model of timm, which is not installed.

    Example:
        >>> masking = DPPMasking(tau=0.0)
        >>> masking(torch.rand(2, 3, 64, 64), mask_ratio=0.75, patch_size=8).ids_keep.shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        *,
        method: str = "greedy",
        tau: float | None = None,
        kernel: str = "rbf",
        bandwidth: float | None = None,
        features: str | Callable[[Tensor], Tensor] = "pooled",
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.method = check_choice("method", method, METHODS)
        if method == "exact" and tau is not None:
            raise ValueError(f"tau applies to method='greedy' only, got tau={tau}")
        if method == "greedy":
            tau = check_share("tau", DEFAULT_TAU if tau is None else tau)
        check_kernel(kernel, bandwidth)
        if isinstance(features, str):
            if features.startswith(frozen.PREFIX):
                frozen.model(features)  # made now: errors come at construction
            elif features not in (*FEATURES, ENCODER):
                raise ValueError(f"features must be {_ALLOWED}, got {features!r}")
        elif not callable(features):
            raise TypeError(f"features must be {_ALLOWED}, got {features!r}")
        self.tau = tau
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.features = features
        self._encode: Callable[[Tensor], Tensor] | None = None

    @property
    def needs_model(self) -> bool:
        """Whether ``features`` are a network's."""
        own = self.features
        return isinstance(own, str) and (own == ENCODER or own.startswith(frozen.PREFIX))

    def with_encoder(self, encode: Callable[[Tensor], Tensor]) -> DPPMasking:
        """As :meth:`Masking.with_encoder`; itself unless ``features="encoder"``."""
        if self.features != ENCODER:
            return self
        bound = copy.copy(self)
        bound._encode = encode
        return bound

    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
    ) -> Tensor:
        if self.tau == 1.0:
            return noise
        if self.has_compiled_path and not is_traced(images) and _numba.usable_for(images):
            pixels = images.detach()
            pixels = pixels if pixels.dtype == torch.uint8 else pixels.float()
            kept = self.choose_from_pixels(
                pixels.numpy(), 1, grid, num_keep, noise.double().contiguous().numpy()
            )
            ids_keep = torch.from_numpy(kept)
        elif self.method == "exact" and self.kernel == "cosine" and self._is_stock:
            features = self._unit_features(images, grid)
            if num_keep <= features.shape[2] < features.shape[1]:
                ids_keep = sample_kdpp_dual(unit_vectors(features), num_keep, generator)
            else:
                ids_keep = sample_kdpp(patch_kernel(features, "cosine"), num_keep, generator)
        else:
            ids_keep = self.choose(self.similarity(images, grid), num_keep, noise, generator)
        # Chosen units first, in the order of their choice; the others as random masking.
        order = torch.arange(-num_keep, 0, device=noise.device, dtype=noise.dtype)
        return noise.scatter(1, ids_keep, order.expand_as(ids_keep))

    @property
    def has_compiled_path(self) -> bool:
        """Whether :meth:`choose_from_pixels` does what :meth:`scores` does."""
        return (
            _numba.INSTALLED
            and self.method == "greedy"
            and self.features in FEATURES
            and self._is_stock
        )

    @property
    def _is_stock(self) -> bool:
        """Whether no subclass has a kernel or a choice of its own."""
        own = type(self)
        return own.similarity is DPPMasking.similarity and own.choose is DPPMasking.choose

    def choose_from_pixels(
        self, images: np.ndarray, channels: int, grid: Grid, k: int, noise: np.ndarray
    ) -> np.ndarray:
        """Units to keep, as of :meth:`choose`, see ``_numba.greedy_from_pixels``."""
        assert isinstance(self.features, str)
        assert self.tau is not None
        height, width = images.shape[2] // grid[0], images.shape[3] // channels // grid[1]
        side = unit_sides(height, width, self.features)
        bandwidth = 0.0 if self.bandwidth is None else in_range(self.bandwidth)
        cosine, threshold = self.kernel == "cosine", max(self.tau, SMALLEST_GAIN)
        return _numba.greedy_from_pixels(
            images, channels, grid, side, cosine, bandwidth, k, threshold, noise
        )

    def similarity(self, images: Tensor, grid: Grid) -> Tensor:
        """Kernel ``(B, U, U)`` of the masking units of ``images`` ``(B, C, H, W)``.

        Raises:
            RuntimeError: If ``features="encoder"`` and no model has given its encoder.
        """
        return patch_kernel(self._unit_features(images, grid), self.kernel, self.bandwidth)

    def _unit_features(self, images: Tensor, grid: Grid) -> Tensor:
        features = self.features
        if features == ENCODER:
            if self._encode is None:
                raise RuntimeError(
                    "features='encoder' needs a model: give this masking to wrap(model, "
                    "masking=...), as masking=dict(...) to MaskedMAEViT, MaskedMAEHiViT or "
                    "MISimMIM, or call its with_encoder(encode) with a function from images to "
                    "patch tokens (B, N, D)"
                )
            features = self._encode
        return unit_features(images, grid, features)

    def choose(
        self, similarity: Tensor, k: int, noise: Tensor, generator: Generator | None = None
    ) -> Tensor:
        """``(B, k)`` units to keep of kernels ``(B, N, N)``, in the order of their choice.

        ``noise`` ``(B, N)`` is the greedy method's, ``generator`` the exact one's.
        """
        if self.tau is None:
            return sample_kdpp(similarity, k, generator)
        return greedy_map(similarity, k, self.tau, noise=noise)


def _check_kernels(L: Tensor, k: int) -> None:
    check_shape("L", L, "B", "N", "N")
    if not 1 <= k <= L.shape[1]:
        raise ValueError(f"k must be in 1..N={L.shape[1]}, got {k}")


@torch.no_grad()
def greedy_map(
    L: Tensor,
    k: int,
    tau: float = 0.0,
    random_start: bool = True,
    generator: Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Choose k items per kernel greedily by their gain in determinant (Eqs. 13-15).

    The gain of item j is ``d_j^2 = det(L_{Y+j}) / det(L_Y)``. Items are added in order of
    largest gain while that gain exceeds ``tau`` (and rounding error); the rest are
    uniformly random. Arithmetic is float64 whatever the dtype of ``L``, or float32 on devices
    that have nothing else.

    Args:
        L: ``(B, N, N)`` symmetric positive semi-definite kernels.
        k: Number of items, in 1..N.
        tau: Smallest accepted gain, as a share of the kernel's largest diagonal element,
            which no gain exceeds; in [0, 1]. Default: 0, greedy to the end.
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
    _check_kernels(L, k)
    batch, num = L.shape[:2]
    threshold = max(check_share("tau", tau), SMALLEST_GAIN)
    if noise is None:
        noise = torch.rand(batch, num, device=L.device, generator=generator)
    else:
        check_shape("noise", noise, batch, num)
    if L.dtype not in (torch.float32, torch.float64):
        L = L.float()
    # Divided by 1, which patch_kernel's diagonals are, nothing changes.
    largest = L.diagonal(dim1=1, dim2=2).amax(dim=1)[:, None, None]
    return choose_sets(L / torch.where(largest > 0, largest, 1), k, threshold, random_start, noise)


def choose_sets(
    L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor, num_sets: int = 1
) -> Tensor:
    """M disjoint sets, each chosen as :func:`greedy_map` does, one item at a time in turns.

    The order of turns is reversed every round, so that no set is served worse.

    Args:
        L: ``(B, N, N)`` kernels.
        k: Items per set; M * k <= N.
        threshold: Smallest accepted gain, above 0.
        random_start, noise: As in :func:`greedy_map`.
        num_sets: M. Default: 1.

    Returns:
        ``(M * B, k)`` long; row ``m * B + b`` is set m of kernel b.
    """
    arguments = (L, k, threshold, random_start, noise)
    if num_sets == 1 and not is_traced(L) and _numba.usable_for(L):
        return _numba.greedy_map(*arguments)
    return _fused(_triton.greedy_map, _greedy_map_torch, *arguments, num_sets)


def _fused(
    kernel: Callable[..., Tensor | None], reference: Callable[..., Tensor], *arguments: Any
) -> Tensor:
    """The result of a Triton kernel where it can run, else that of its reference."""
    L = arguments[0]
    fits = (torch.compiler.is_compiling() or not is_traced(L)) and _triton.usable_for(L)
    result = kernel(*arguments) if fits else None
    return reference(*arguments) if result is None else result


def _greedy_map_torch(
    L: Tensor, k: int, threshold: float, random_start: bool, noise: Tensor, num_sets: int = 1
) -> Tensor:
    """The contract of :func:`choose_sets`, in PyTorch alone."""
    # Out of place where images meet noise, so that vmap can run it.
    L = L.to(widest_dtype(L.device))
    threshold = max(threshold, 100 * torch.finfo(L.dtype).eps)
    batch, num = L.shape[:2]
    gain = L.diagonal(dim1=1, dim2=2).repeat(num_sets, 1, 1)  # d_i^2, (M, B, N)
    rest = noise  # order of random choice; infinite once chosen
    c = L.new_zeros(num_sets * batch, k, num)  # c[b, :t, i] is c_i of Eq. 13
    chosen: list[Tensor] = []
    for t in range(k):
        turn: dict[int, tuple[Tensor, Tensor]] = {}
        for m in range(num_sets) if t % 2 == 0 else reversed(range(num_sets)):
            free = gain[m].masked_fill(rest.isinf(), -torch.inf)
            j = rest.argmin(dim=1) if t == 0 and random_start else free.argmax(dim=1)
            greedy = free.gather(1, j[:, None])[:, 0] > threshold
            j = torch.where(greedy, j, rest.argmin(dim=1))
            rest = rest.scatter(1, j[:, None], torch.inf)
            turn[m] = j, greedy
        ids, greedily = (torch.stack([turn[m][i] for m in range(num_sets)]) for i in (0, 1))
        chosen.append(ids)
        largest = gain.gather(2, ids[:, :, None])[:, :, 0]
        L_j = L.gather(1, ids.T[:, :, None].expand(-1, -1, num)).transpose(0, 1)
        d_j = torch.where(greedily, largest, 1.0).sqrt()
        c[:, t], after = _condition(
            L_j.flatten(0, 1), c[:, :t], ids.flatten(), d_j.flatten(), gain.flatten(0, 1)
        )
        # Gains never grow, so once none is above the threshold a set's rest is random.
        gain = torch.where(greedily[:, :, None], after.view_as(gain), -torch.inf)
    return torch.stack(chosen, dim=2).flatten(0, 1)


def _condition(
    L_j: Tensor, c: Tensor, j: Tensor, d_j: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """Add item j to the chosen ones: the new row e of c and the new gains ``d_i^2``.

    Shapes: ``L_j (B, N)``, ``c (B, t, N)``, ``j (B,)``, ``d_j (B,)``, ``gain (B, N)``.
    """
    c_j = c.gather(2, j[:, None, None].expand(-1, c.shape[1], 1))
    e = (L_j - (c_j.mT @ c)[:, 0]) / d_j[:, None]  # Eq. 14
    return e, gain - e * e  # Eq. 15


@torch.no_grad()
def sample_kdpp(L: Tensor, k: int, generator: Generator | None = None) -> Tensor:
    """Exact samples of k-DPPs: ``P(Y) = det(L_Y) / sum of det(L_Y') over |Y'| = k``.

    Kulesza and Taskar, "k-DPPs: Fixed-Size Determinantal Point Processes", ICML 2011: k
    eigenvectors are drawn by elementary symmetric polynomials of the eigenvalues, then the
    projection DPP they span is sampled item by item, with the conditional probabilities
    updated as in Eqs. 14-15. Arithmetic is float64, the polynomials are in logarithms.
    Eigenvalues below 1e-10 of their mean are raised to it, so that a singular kernel still
    yields k distinct items.

    Args:
        L: ``(B, N, N)`` symmetric positive semi-definite kernels, not all zero.
        k: Number of items, in 1..N.
        generator: Source of randomness, on the device of ``L``. Default: torch's own.

    Returns:
        ``(B, k)`` long, without repetition; as a set distributed as above.

    Raises:
        ValueError: If an argument has the wrong shape or range.
    """
    _check_kernels(L, k)
    eigenvalues, eigenvectors = _eigh(L)
    floor = _EIGENVALUE_FLOOR * eigenvalues.mean(dim=1, keepdim=True)
    return _sample(torch.maximum(eigenvalues, floor), eigenvectors, k, generator)


@torch.no_grad()
def sample_kdpp_dual(features: Tensor, k: int, generator: Generator | None = None) -> Tensor:
    """:func:`sample_kdpp` of ``L = X X^T`` at the cost of ``X^T X``, (D, D) instead of (N, N).

    Kulesza and Taskar, "Determinantal Point Processes for Machine Learning", 2012, section
    3.3: both have the same eigenvalues above 0, and from an eigenvector w of ``X^T X`` comes
    ``X w / sqrt(lambda)``. With fewer than k eigenvalues above the floor all of them count,
    and the items beyond their number are uniformly random: the k-DPP of ``L + eps I`` for
    small eps.

    Args:
        features: ``(B, N, D)``, the X, not all zero.
        k: Number of items, in 1..min(N, D).
        generator: Source of randomness, on the device of ``features``. Default: torch's own.

    Returns:
        ``(B, k)`` long, without repetition.

    Raises:
        ValueError: If an argument has the wrong shape or range.
    """
    check_shape("features", features, "B", "N", "D")
    if not 1 <= k <= min(features.shape[1:]):
        raise ValueError(f"k must be in 1..min(N, D)={min(features.shape[1:])}, got {k}")
    x = features.to(widest_dtype(features.device))
    eigenvalues, w = _eigh(x.mT @ x)
    floor = _EIGENVALUE_FLOOR * eigenvalues.sum(dim=1, keepdim=True) / x.shape[1]
    scale = torch.where(eigenvalues > floor, eigenvalues, torch.inf).rsqrt()
    return _sample(torch.maximum(eigenvalues, floor), x @ w * scale[:, None], k, generator)


def _eigh(L: Tensor) -> tuple[Tensor, Tensor]:
    if L.is_cuda and L.shape[1] > 32:
        _warn_if_eigh_is_a_loop(torch.__version__)
    eigenvalues, eigenvectors = torch.linalg.eigh(L.to(widest_dtype(L.device)))
    return eigenvalues, eigenvectors


@cache
def _warn_if_eigh_is_a_loop(torch_version: str) -> None:
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


def _sample(
    eigenvalues: Tensor, eigenvectors: Tensor, k: int, generator: Generator | None
) -> Tensor:
    """From ``eigenvalues (B, M)`` above 0 and ``eigenvectors (B, N, M)``, zeros at the floor."""
    batch, num, rank = eigenvectors.shape
    random: Any = {"dtype": eigenvalues.dtype, "device": eigenvalues.device}
    uniform = torch.rand((rank, batch), generator=generator, **random)
    spanned = _fused(
        _triton.sample_eigenvectors, _sample_eigenvectors, eigenvalues.log(), k, uniform
    )
    basis = eigenvectors.gather(2, spanned[:, None].expand(-1, num, -1))
    # Of exponential clocks with rates p_j the first to ring is j with probability p_j.
    clocks = torch.empty((k, batch, num), **random).exponential_(generator=generator)
    return _fused(_triton.sample_projection, _sample_projection, basis @ basis.mT, k, clocks)


def _sample_projection(K: Tensor, k: int, clocks: Tensor) -> Tensor:
    """Samples of projection DPPs, item by item.

    Args:
        K: ``(B, N, N)`` float64 projections onto k dimensions, or fewer: then the items
            beyond their number are uniformly random.
        clocks: ``(k, B, N)`` exponential random numbers.

    Returns:
        ``(B, k)`` long, without repetition.
    """
    batch, num = K.shape[:2]
    smallest = _triton.SMALLEST_PROBABILITY
    rows = torch.arange(batch, device=K.device)
    probability = K.diagonal(dim1=1, dim2=2).clamp(min=smallest)
    c = K.new_zeros(batch, k, num)
    chosen = torch.empty(batch, k, dtype=torch.long, device=K.device)
    taken = torch.zeros(batch, num, dtype=torch.bool, device=K.device)
    for t in range(k):
        j = (probability / clocks[t]).masked_fill(taken, -1.0).argmax(dim=1)
        chosen[:, t] = j
        taken[rows, j] = True
        d_j = probability[rows, j].sqrt()
        c[:, t], probability = _condition(K[rows, j], c[:, :t], j, d_j, probability)
        probability = probability.clamp(min=smallest)
    return chosen


def _sample_eigenvectors(log_eigenvalues: Tensor, k: int, uniform: Tensor) -> Tensor:
    """Draw k of N eigenvectors with probability proportional to their product.

    Args:
        log_eigenvalues: ``(B, N)``.
        uniform: ``(N, B)`` random numbers.

    Returns:
        ``(B, k)`` long, the drawn indices.
    """
    batch, num = log_eigenvalues.shape
    # log_e[n][:, r] is log e_r(lambda_1..lambda_n), the elementary symmetric polynomial.
    first = log_eigenvalues.new_full((batch, k + 1), -torch.inf)
    first[:, 0] = 0.0
    log_e = [first]
    for n in range(num):
        with_n = log_e[n][:, :-1] + log_eigenvalues[:, n, None]
        log_e.append(torch.cat([log_e[n][:, :1], torch.logaddexp(log_e[n][:, 1:], with_n)], dim=1))
    missing = torch.full((batch, 1), k, device=uniform.device)
    drawn = torch.empty(batch, num, dtype=torch.bool, device=uniform.device)
    for n in range(num, 0, -1):
        log_with = (
            log_eigenvalues[:, n - 1] + log_e[n - 1].gather(1, (missing - 1).clamp(min=0))[:, 0]
        )
        log_all = log_e[n].gather(1, missing)[:, 0]
        take = (missing[:, 0] > 0) & (uniform[n - 1].log() < log_with - log_all)
        drawn[:, n - 1] = take
        missing = missing - take[:, None].long()
    return torch.argsort(drawn.to(torch.uint8), dim=1, descending=True, stable=True)[:, :k]
