"""Which pixels come from another image, and what is then the distance? MixMask, Un-Mix, erasing.

"MixMask: Revisiting Masked Siamese Self-supervised Learning in Asymmetric Distance" (Eqs.
1-6), with Un-Mix (Shen et al., AAAI 2022) and erase-based masking (table 4) beside it. Images
are mixed within a batch; the loss then compares every mixed image with the two it is made of.

Here ``mask == 1`` marks the image's OWN, kept pixels, as in Eq. 1. In the rest of the package
a mask marks what is removed.

Which views are mixed: those that the query (online) branch encodes, never those of the keys.
Each of these passes is repeated on mixed images, and each term of the stock loss gets the two
terms of Eq. 4. So MoCo mixes its query view; BYOL and SimSiam, whose loss is symmetric, mix
both views on the side of the predictor; in SimCLR both views are queries and each other's
keys, and the mean over the two directions is taken. All views of a step share mask and
permutation (:func:`mix_views`). In-batch negatives are the criterion's own: with NT-Xent the
partner of an image is a negative like any other in L_up and the positive in L_down, and the
image itself is then a negative.
"""

from __future__ import annotations

import copy
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._check import check_choice, check_int, check_number, check_positive, check_share
from ..masking import BlockMasking, GridMasking, Masking, RandomMasking

MASKS: dict[str, type[Masking]] = {
    "block": BlockMasking,
    "random": RandomMasking,
    "grid": GridMasking,
}
PERMUTATIONS = ("inverse", "random")
FILLS = ("zero", "mean", "noise")
SECONDS = ("complement", "reversed")


@dataclass(frozen=True, eq=False)
class Mix:
    """A batch of mixed images and what the loss must know of them.

    Attributes:
        images: ``(B, C, H, W)``. Image i shows its own content in a share ``lam`` and that
            of image ``permutation[i]`` in the rest.
        lam: λ of Eq. 3, counted in pixels; a Python float, so no device is waited for.
        permutation: ``(B,)`` long, P: the partner of every image.
        mask: ``(H, W)`` bool, True = own pixel. None for a global mixture (MixUp).
        complement: Only of :class:`EraseMask`: ``(B, C, H, W)``, the same images with the
            complement erased. These stand in for the reversed order in the second term.
    """

    images: Tensor
    lam: float
    permutation: Tensor
    mask: Tensor | None
    complement: Tensor | None = None

    @property
    def inverse(self) -> Tensor:
        """``(B,)`` long, the inverse of P: ``inverse[j]`` is the image that j was mixed into."""
        return torch.argsort(self.permutation)

    @property
    def views(self) -> tuple[Tensor, ...]:
        """The batches to encode, each ``(B, C, H, W)``: ``images`` and, if any, ``complement``."""
        return (self.images,) if self.complement is None else (self.images, self.complement)


class Mixer(ABC):
    """Base of the mixers: images in, :class:`Mix` out.

    All random numbers are drawn on the host: they are few, and λ is then known there. What
    is drawn there torch.compile cannot trace, so that it leaves out a mixer as a whole: one
    graph break, not one per number.
    """

    def __repr__(self) -> str:
        args = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({args})"

    @torch.no_grad()
    @torch.compiler.disable
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Mix:
        """Mix a batch.

        Args:
            images: ``(B, C, H, W)``, floating.
            generator: Source of randomness, on the CPU whatever the device of the images.
                Default: torch's own.

        Raises:
            TypeError: If ``images`` is no floating tensor.
            ValueError: If it has another shape, holds a single image and so no partner, or
                is too small for the grid; or ``generator`` is not on the CPU.
        """
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images must be a tensor (B, C, H, W), got {type(images).__name__}; of a list "
                "of views, mix each one"
            )
        if not images.is_floating_point():
            raise TypeError(f"images must be floating, got {images.dtype}")
        if images.ndim != 4 or 0 in images.shape:
            raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
        return self.mix(images, generator)

    @abstractmethod
    def mix(self, images: Tensor, generator: torch.Generator | None) -> Mix:
        """Mix checked ``images``."""


class _GridMixer(Mixer):
    """What :class:`MixMask` and :class:`EraseMask` share: one n x n mask for the batch."""

    def __init__(
        self, mask: str, grid_size: int | None, ratio: float | tuple[float, float]
    ) -> None:
        check_choice("mask", mask, tuple(MASKS))
        self.mask = mask
        if grid_size is not None:
            check_int("grid_size", grid_size, 2)
        self.grid_size = grid_size
        self.ratio = _check_ratio(ratio)

    def draw(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, float]:
        """One mask ``(H, W)`` bool on the images' device, True = own pixel, and λ.

        Of the n^2 cells ``round(ratio * n^2)`` are own, at least one and at most all but one.

        Raises:
            ValueError: If the image has fewer rows or columns of pixels than the grid.
        """
        height, width = images.shape[-2:]
        size = self.grid_size or default_grid_size(min(height, width))
        if size > min(height, width):
            raise ValueError(
                f"grid_size must be at most the image's side, got {size} for {height} x {width}"
            )
        ratio = self.ratio
        if isinstance(ratio, tuple):
            low, high = ratio
            ratio = low + (high - low) * float(torch.rand((), generator=generator))
        own = min(max(round(ratio * size**2), 1), size**2 - 1)
        # Half a cell less, so that no rounding moves the count of kept units, which is cut off.
        masking = MASKS[self.mask](mask_ratio=(own - 0.5) / size**2, patch_size=1)
        cells = masking(torch.empty(1, 1, size, size), generator=generator).mask.view(size, size)
        # 48 does not divide 224: cells differ in size by a pixel, and λ depends on which are own.
        rows, cols = (torch.arange(side) * size // side for side in (height, width))
        mask = cells[rows][:, cols]
        lam = int(mask.sum()) / (height * width)
        return _to(mask, images.device), lam


class MixMask(_GridMixer):
    """Fill a mask's holes with another image of the batch (Eqs. 1-3).

    ``mix[i] = mask * images[i] + (1 - mask) * images[P(i)]``, with one mask for the batch.

    Args:
        mask: ``"block"``: the own cells form rectangles as in BEiT, with exact count;
            ``"random"``: discrete cells; ``"grid"``: a regular pattern. Default: ``"block"``.
        grid_size: n, cells per side of the n x n grid, at least 2. Default: by the shorter
            side of the image, 2 for 32 pixels, 4 for 64, 8 for 224 (table 1); see
            :func:`default_grid_size`.
        ratio: Share of own cells, λ up to rounding, in (0, 1); or ``(a, b)`` with
            0 <= a < b <= 1, drawn uniformly for every batch. The mask is never empty or
            full. Default: 0.5.
        permutation: ``"inverse"``: image i is mixed with B - 1 - i, and of an odd batch the
            middle one stays as it is; ``"random"``: with that of a random permutation, whose
            fixed points stay as they are. Default: ``"inverse"``, or ``"random"`` beside
            Un-Mix (table 2).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> mix = MixMask(ratio=0.25)(torch.rand(8, 3, 32, 32))
        >>> mix.lam, mix.permutation.tolist()
        (0.25, [7, 6, 5, 4, 3, 2, 1, 0])
    """

    def __init__(
        self,
        mask: str = "block",
        grid_size: int | None = None,
        ratio: float | tuple[float, float] = 0.5,
        permutation: str | None = None,
    ) -> None:
        super().__init__(mask, grid_size, ratio)
        if permutation is not None:
            check_choice("permutation", permutation, PERMUTATIONS)
        self.permutation = permutation

    def mix(self, images: Tensor, generator: torch.Generator | None) -> Mix:
        _check_partners(images)
        mask, lam = self.draw(images, generator)
        partner = _permutation(self.permutation or "inverse", images, generator)
        return Mix(torch.where(mask, images, images[partner]), lam, partner, mask)


class UnMix(Mixer):
    """MixUp or CutMix with the inverse permutation (Shen et al., "Un-Mix", AAAI 2022).

    Args:
        prob_global: P, the probability of a global mixture (MixUp) instead of a region
            (CutMix), in [0, 1]. Default: 0.5 (table 3).
        alpha: λ is drawn from Beta(alpha, alpha), above 0; for CutMix it is then recounted in
            pixels, the box being clipped at the border. Default: 1.
        permutation: ``"inverse"`` or ``"random"``. Default: ``"inverse"``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, prob_global: float = 0.5, alpha: float = 1.0, permutation: str = "inverse"
    ) -> None:
        self.prob_global = check_share("prob_global", prob_global)
        self.alpha = check_positive("alpha", alpha)
        self.permutation = check_choice("permutation", permutation, PERMUTATIONS)

    def mix(self, images: Tensor, generator: torch.Generator | None) -> Mix:
        _check_partners(images)
        # torch's Beta takes no generator, Python's takes a seed.
        dice = random.Random(int(torch.randint(2**62, (), generator=generator)))
        lam = dice.betavariate(self.alpha, self.alpha)
        partner = _permutation(self.permutation, images, generator)
        if dice.random() < self.prob_global:
            return Mix(lam * images + (1 - lam) * images[partner], lam, partner, None)
        height, width = images.shape[-2:]
        if min(height, width) < 2:
            raise ValueError(f"images must have at least 2 x 2 pixels, got {height} x {width}")
        rows, cols = (_interval(side, math.sqrt(1 - lam), dice) for side in (height, width))
        mask = torch.ones(height, width, dtype=torch.bool)
        mask[rows, cols] = False
        lam = int(mask.sum()) / mask.numel()
        mask = _to(mask, images.device)
        return Mix(torch.where(mask, images, images[partner]), lam, partner, mask)


class EraseMask(_GridMixer):
    """Erase instead of fill: the baseline of table 4, with the same two terms.

    The first term takes the image with everything but its own cells erased, weighted λ. For
    the second, weighted 1 - λ, the paper names no image. By default it is the same image with
    the complement erased (our reading: what MixMask's second term sees of it, without the
    other image), which costs a second pass.

    Args:
        mask, grid_size, ratio: As of :class:`MixMask`.
        fill: ``"zero"``; ``"mean"``: of each image and channel; ``"noise"``: standard normal
            (images are normalised). Default: ``"zero"``.
        second: ``"complement"``; or ``"reversed"``: the literal reversed order, in which the
            erased image is compared with that of index B - 1 - i, of which it shows
            nothing. Default: ``"complement"``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        fill: str = "zero",
        mask: str = "block",
        grid_size: int | None = None,
        ratio: float | tuple[float, float] = 0.5,
        second: str = "complement",
    ) -> None:
        super().__init__(mask, grid_size, ratio)
        check_choice("fill", fill, FILLS)
        check_choice("second", second, SECONDS)
        self.fill = fill
        self.second = second

    def mix(self, images: Tensor, generator: torch.Generator | None) -> Mix:
        reverse = self.second == "reversed"
        if reverse:
            _check_partners(images)
        mask, lam = self.draw(images, generator)
        filling = self._filling(images, generator)
        partner = torch.arange(len(images), device=images.device)
        return Mix(
            torch.where(mask, images, filling),
            lam,
            partner.flip(0) if reverse else partner,
            mask,
            None if reverse else torch.where(mask, filling, images),
        )

    def _filling(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.fill == "zero":
            return images.new_zeros(())
        if self.fill == "mean":
            return images.mean(dim=(2, 3), keepdim=True)
        device = images.device if generator is None else generator.device
        noise = torch.randn(images.shape, device=device, dtype=images.dtype, generator=generator)
        return _to(noise, images.device)


def default_grid_size(side: int) -> int:
    """Cells per side for an image of ``side`` pixels: 2 for 32, 4 for 64, 8 for 224 (table 1).

    In general the largest power of two whose cells have at least 16 pixels, at least 2.
    """
    return 2 ** max(1, int(math.log2(max(side // 16, 1))))


def mix_views(
    mixer: Mixer, views: Sequence[Tensor], generator: torch.Generator | None = None
) -> list[Mix]:
    """Mix several views of the same images with one mask, one λ and one permutation.

    Args:
        mixer: Any mixer.
        views: Tensors ``(B, C, H, W)`` of equal shape; image i is the same in all.
        generator: See :class:`Mixer`.

    Returns:
        One :class:`Mix` for each view.

    Raises:
        TypeError: If ``views`` is no list or tuple of tensors.
        ValueError: If it is empty, or shapes differ.
    """
    if not isinstance(views, (list, tuple)) or not all(isinstance(v, Tensor) for v in views):
        raise TypeError(f"views must be a list of tensors, got {type(views).__name__}")
    shapes = [tuple(view.shape) for view in views]
    if len(set(shapes)) != 1:
        raise ValueError(f"views must be at least one and have equal shapes, got {shapes}")
    if len(views) == 1:
        return [mixer(views[0], generator)]
    mix = mixer(torch.cat(tuple(views), dim=1), generator)  # side by side, as more channels
    parts = [view.chunk(len(views), dim=1) for view in mix.views]
    return [
        Mix(part[0], mix.lam, mix.permutation, mix.mask, *part[1:])
        for part in zip(*parts, strict=True)
    ]


def combine(mixing: Mixer | None, unmix: UnMix | None) -> tuple[Mixer, ...]:
    """The mixers of a step, with different permutations when both are given (table 2).

    Un-Mix keeps the inverse permutation and MixMask takes a random one, unless it names its
    own. The order is that of the arguments.

    Raises:
        TypeError: If ``mixing`` is no :class:`MixMask` or :class:`EraseMask`, or ``unmix`` no
            :class:`UnMix`.
    """
    if mixing is not None and not isinstance(mixing, (MixMask, EraseMask)):
        raise TypeError(f"mixing must be a MixMask or an EraseMask, got {mixing!r}")
    if unmix is not None and not isinstance(unmix, UnMix):
        raise TypeError(f"unmix must be an UnMix, got {unmix!r}")
    if unmix is not None and isinstance(mixing, MixMask) and mixing.permutation is None:
        mixing = copy.copy(mixing)
        mixing.permutation = "random" if unmix.permutation == "inverse" else "inverse"
    return tuple(mixer for mixer in (mixing, unmix) if mixer is not None)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the host without waiting for the device."""
    return tensor.to(device, non_blocking=True)


def _permutation(kind: str, images: Tensor, generator: torch.Generator | None) -> Tensor:
    if kind == "inverse":
        return torch.arange(len(images) - 1, -1, -1, device=images.device)
    return _to(torch.randperm(len(images), generator=generator), images.device)


def _interval(side: int, share: float, dice: random.Random) -> slice:
    """A part of ``0..side``, centred anywhere and clipped, neither empty nor everything."""
    length = min(max(int(side * share), 1), side - 1)
    start = dice.randrange(side) - length // 2
    return slice(max(start, 0), min(start + length, side))


def _check_partners(images: Tensor) -> None:
    if len(images) < 2:
        raise ValueError("images must be at least 2, got a batch of 1: nothing to mix with")


def _check_ratio(ratio: float | tuple[float, float]) -> float | tuple[float, float]:
    if isinstance(ratio, (tuple, list)):
        if len(ratio) != 2:
            raise ValueError(f"ratio must be a number or a pair (a, b), got {ratio!r}")
        for bound in ratio:
            check_number("ratio", bound)
        low, high = ratio
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"ratio (a, b) must have 0 <= a < b <= 1, got {ratio!r}")
        return (float(low), float(high))
    check_number("ratio", ratio)
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"ratio must be in (0, 1), got {ratio}")
    return float(ratio)
