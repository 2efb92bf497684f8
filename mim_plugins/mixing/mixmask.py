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
permutation. In-batch negatives are the criterion's own: with NT-Xent the partner of an image is
a negative like any other in L_up and the positive in L_down, and the image itself is then a
negative.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Generator, Tensor

from .._check import (
    check_bool,
    check_choice,
    check_fraction,
    check_int,
    check_number,
    check_positive,
    check_share,
)
from .._tensor import check_shape
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

    A mixer of one's own says in :meth:`draw` which pixels stay and which image is the partner.

    All random numbers are drawn on the host: they are few, and λ is then known there. What
    is drawn there torch.compile cannot trace, so that it leaves out a mixer as a whole: one
    graph break, not one per number.
    """

    def __repr__(self) -> str:
        args = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({args})"

    @overload
    def __call__(self, images: Tensor, generator: Generator | None = None) -> Mix: ...

    @overload
    def __call__(
        self, images: Sequence[Tensor], generator: Generator | None = None
    ) -> list[Mix]: ...

    @torch.no_grad()
    @torch.compiler.disable
    def __call__(
        self, images: Tensor | Sequence[Tensor], generator: Generator | None = None
    ) -> Mix | list[Mix]:
        """Mix a batch, or several views of it with one mask, one λ and one permutation.

        Args:
            images: ``(B, C, H, W)``, floating; or a list of such views, of equal shape. Mixed
                images have the memory format of ``images``.
            generator: Source of randomness, on the CPU whatever the device of the images.
                Default: torch's own; in a distributed run each rank draws its own numbers from
                it, also where all ranks have the same seed.

        Raises:
            TypeError: If ``images`` is no floating tensor and no list of them.
            ValueError: If shapes are others or differ, there is a single image and so no
                partner, or it is too small for the grid; or ``generator`` is not on the CPU.
        """
        views = [images] if isinstance(images, Tensor) else images
        if not isinstance(views, (list, tuple)) or not all(isinstance(v, Tensor) for v in views):
            raise TypeError(
                "images must be a tensor (B, C, H, W) or a list of them, got "
                f"{type(views).__name__}"
            )
        shapes = [tuple(view.shape) for view in views]
        if len(set(shapes)) != 1:
            raise ValueError(f"views must be at least one and have equal shapes, got {shapes}")
        if not all(view.is_floating_point() for view in views):
            raise TypeError(f"images must be floating, got {views[0].dtype}")
        check_shape("images", views[0], "B >= 1", "C >= 1", "H >= 1", "W >= 1")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
        own, partner = self.draw(views[0], _of_this_rank() if generator is None else generator)
        partner = partner.to(views[0].device, non_blocking=True)
        if isinstance(own, Tensor):
            lam = int(own.sum()) / own.numel()
            own = own.to(views[0].device, non_blocking=True)
            mixes = [self.compose(view, lam, partner, own, generator) for view in views]
        else:
            mixes = [
                Mix(own * view + (1 - own) * view[partner], own, partner, None) for view in views
            ]
        return mixes[0] if isinstance(images, Tensor) else mixes

    @abstractmethod
    def draw(self, images: Tensor, generator: Generator | None) -> tuple[Tensor | float, Tensor]:
        """Draw what is mixed how, for all images of a batch.

        Args:
            images: ``(B, C, H, W)``, one view.
            generator: Source of the random numbers, to be drawn on the CPU.

        Returns:
            The mask ``(H, W)`` bool, True = own pixel, on the CPU; or, for a global mixture,
            the share λ of the own image. And the partners ``(B,)`` long, a permutation.
        """

    def compose(
        self, images: Tensor, lam: float, partner: Tensor, mask: Tensor, generator: Generator | None
    ) -> Mix:
        """Eq. 1: the holes of ``mask`` are filled with the partner's pixels."""
        return Mix(torch.where(mask, images, images[partner]), lam, partner, mask)


class _GridMixer(Mixer):
    """What :class:`MixMask` and :class:`EraseMask` share: one n x n mask for the batch."""

    def __init__(
        self,
        mask: str,
        grid_size: int | None,
        ratio: float | tuple[float, float],
        exact: bool,
    ) -> None:
        self.mask = check_choice("mask", mask, tuple(MASKS))
        if grid_size is not None:
            check_int("grid_size", grid_size, 2)
        self.grid_size = grid_size
        self.ratio = _check_ratio(ratio)
        self.exact = check_bool("exact", exact)
        if mask == "grid" and not exact:
            raise ValueError("exact must be True for mask='grid', which has a fixed count")

    def own_pixels(self, images: Tensor, generator: Generator | None) -> Tensor:
        """One mask ``(H, W)`` bool on the CPU, True = own pixel.

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
        if self.exact:
            own = min(max(round(ratio * size**2), 1), size**2 - 1)
            # Half a cell less, so that no rounding moves the count of kept units, cut off below.
            masking = MASKS[self.mask](mask_ratio=(own - 0.5) / size**2, patch_size=1)
            blank = torch.empty(1, 1, size, size)
            cells = masking(blank, generator=generator).mask.view(size, size)
        elif self.mask == "random":
            cells = _bernoulli_cells(size, ratio, generator)
        else:
            cells = _beit_cells(size, int(ratio * size**2), _dice(generator))
        # 48 does not divide 224: cells differ in size by a pixel, and λ depends on which are own.
        rows, cols = (torch.arange(side) * size // side for side in (height, width))
        return cells[rows][:, cols]


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
            0 <= a < b <= 1, drawn uniformly for every batch. Of the n^2 cells
            ``round(ratio * n^2)`` are own, at least one and at most all but one. Default: 0.5.
        permutation: ``"inverse"``: image i is mixed with B - 1 - i, and of an odd batch the
            middle one stays as it is; ``"random"``: with that of a random permutation, whose
            fixed points stay as they are. Default: ``"inverse"``, or ``"random"`` beside
            Un-Mix (table 2).
        exact: If False, counts are those of the authors' code. Discrete cells are own with
            probability ``ratio`` each, drawn again while all or none are. Blocks are BEiT's:
            they may fall short of ``int(ratio * n^2)`` cells, down to none, where the whole
            image is the partner's and λ is 0 (of 2 x 2 cells at ratio 0.5 nearly always). λ is
            the share of own pixels in any case. Default: True.

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
        exact: bool = True,
    ) -> None:
        super().__init__(mask, grid_size, ratio, exact)
        if permutation is not None:
            check_choice("permutation", permutation, PERMUTATIONS)
        self.permutation = permutation

    def draw(self, images: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        _check_partners(images)
        mask = self.own_pixels(images, generator)
        return mask, _permutation(self.permutation or "inverse", images, generator)


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

    def draw(self, images: Tensor, generator: Generator | None) -> tuple[Tensor | float, Tensor]:
        _check_partners(images)
        dice = _dice(generator)
        lam = dice.betavariate(self.alpha, self.alpha)
        partner = _permutation(self.permutation, images, generator)
        if dice.random() < self.prob_global:
            return lam, partner
        height, width = images.shape[-2:]
        if min(height, width) < 2:
            raise ValueError(f"images must have at least 2 x 2 pixels, got {height} x {width}")
        rows, cols = (_interval(side, math.sqrt(1 - lam), dice) for side in (height, width))
        mask = torch.ones(height, width, dtype=torch.bool)
        mask[rows, cols] = False
        return mask, partner


class EraseMask(_GridMixer):
    """Erase instead of fill: the baseline of table 4, with the same two terms.

    The first term takes the image with everything but its own cells erased, weighted λ. For
    the second, weighted 1 - λ, the paper names no image. By default it is the same image with
    the complement erased (our reading: what MixMask's second term sees of it, without the
    other image), which costs a second pass.

    Args:
        mask, grid_size, ratio, exact: As of :class:`MixMask`.
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
        exact: bool = True,
    ) -> None:
        super().__init__(mask, grid_size, ratio, exact)
        self.fill = check_choice("fill", fill, FILLS)
        self.second = check_choice("second", second, SECONDS)

    def draw(self, images: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        partner = torch.arange(len(images), device=images.device)
        if self.second == "reversed":
            _check_partners(images)
            partner = partner.flip(0)
        return self.own_pixels(images, generator), partner

    def compose(
        self, images: Tensor, lam: float, partner: Tensor, mask: Tensor, generator: Generator | None
    ) -> Mix:
        filling = self._filling(images, generator)
        rest = None if self.second == "reversed" else torch.where(mask, filling, images)
        return Mix(torch.where(mask, images, filling), lam, partner, mask, rest)

    def _filling(self, images: Tensor, generator: Generator | None) -> Tensor:
        if self.fill == "zero":
            return images.new_zeros(())
        if self.fill == "mean":
            return images.mean(dim=(2, 3), keepdim=True)
        if generator is not None:  # numbers drawn on the host would have to be copied
            seed = int(torch.randint(2**62, (), generator=generator))
            generator = Generator(images.device).manual_seed(seed)
        return torch.empty_like(images).normal_(generator=generator)


def default_grid_size(side: int) -> int:
    """Cells per side for an image of ``side`` pixels: 2 for 32, 4 for 64, 8 for 224 (table 1).

    In general the largest power of two whose cells have at least 16 pixels, at least 2.
    """
    return 2 ** max(1, int(math.log2(max(side // 16, 1))))


def combine(mixing: Mixer | None, unmix: UnMix | None) -> tuple[Mixer, ...]:
    """The mixers of a step, with different permutations when both are given (table 2).

    Un-Mix keeps the inverse permutation and MixMask takes a random one, unless it names its
    own. The order is that of the arguments.

    Raises:
        TypeError: If ``mixing`` is no mixer, or an :class:`UnMix`; or ``unmix`` is none.
    """
    if mixing is not None and (not isinstance(mixing, Mixer) or isinstance(mixing, UnMix)):
        raise TypeError(f"mixing must be a MixMask, an EraseMask or your own, got {mixing!r}")
    if unmix is not None and not isinstance(unmix, UnMix):
        raise TypeError(f"unmix must be an UnMix, got {unmix!r}")
    if unmix is not None and isinstance(mixing, MixMask) and mixing.permutation is None:
        mixing = copy.copy(mixing)
        mixing.permutation = "random" if unmix.permutation == "inverse" else "inverse"
    return tuple(mixer for mixer in (mixing, unmix) if mixer is not None)


def _of_this_rank() -> Generator | None:
    """torch's own random numbers; in a distributed run others on each rank, under any seeds."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    if torch.distributed.get_world_size() == 1:
        return None
    seed = int(torch.randint(2**62, ())) + torch.distributed.get_rank()
    return Generator().manual_seed(seed)


def _dice(generator: Generator | None) -> random.Random:
    """For what torch cannot draw on the host: torch's Beta takes no generator."""
    return random.Random(int(torch.randint(2**62, (), generator=generator)))


def _bernoulli_cells(size: int, ratio: float, generator: Generator | None) -> Tensor:
    """Each of ``size`` x ``size`` cells True with probability ``ratio``, neither all nor none."""
    while True:
        cells = torch.rand(size, size, generator=generator) < ratio
        if 0 < int(cells.sum()) < size**2:
            return cells


def _beit_cells(size: int, count: int, dice: random.Random) -> Tensor:
    """Rectangles of cells as BEiT draws them (Bao et al., 2022, algorithm 1), at most ``count``.

    Areas are uniform between 4 and what is missing, aspect ratios log-uniform in (0.3, 1/0.3);
    a rectangle is smaller than the grid on both sides and adds no more than what is missing.
    After ten in a row that do not fit the mask stays as it is.
    """
    cells = torch.zeros(size, size, dtype=torch.bool)
    failures = 0
    while failures < 10 and (missing := count - int(cells.sum())) > 0:
        failures += 1
        area = dice.uniform(4, missing)
        aspect = math.exp(dice.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if max(height, width) < size:
            top, left = dice.randint(0, size - height), dice.randint(0, size - width)
            block = cells[top : top + height, left : left + width]
            if 0 < block.numel() - int(block.sum()) <= missing:
                block.fill_(True)
                failures = 0
    return cells


def _permutation(kind: str, images: Tensor, generator: Generator | None) -> Tensor:
    if kind == "inverse":
        return torch.arange(len(images) - 1, -1, -1, device=images.device)
    return torch.randperm(len(images), generator=generator)


def _interval(side: int, share: float, dice: random.Random) -> slice:
    """A part of ``0..side``, centred anywhere and clipped, neither empty nor everything."""
    length = min(max(int(side * share), 1), side - 1)
    start = dice.randrange(side) - length // 2
    return slice(max(start, 0), min(start + length, side))


def is_single(images: Tensor) -> bool:
    """Whether a batch is of one image, the last of an epoch: its step stays the stock one."""
    if len(images) != 1:
        return False
    # Python shows a warning from one place once.
    warnings.warn("a batch of one image has none to mix with: its step is stock's", stacklevel=2)
    return True


def _check_partners(images: Tensor) -> None:
    if len(images) < 2:
        raise ValueError("images must be at least 2, got a batch of 1: nothing to mix with")


def _check_ratio(ratio: float | tuple[float, float]) -> float | tuple[float, float]:
    if isinstance(ratio, (tuple, list)):
        if len(ratio) != 2:
            raise ValueError(f"ratio must be a number or a pair (a, b), got {ratio!r}")
        low, high = (check_number("ratio", bound) for bound in ratio)
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"ratio (a, b) must have 0 <= a < b <= 1, got {ratio!r}")
        return low, high
    return check_fraction("ratio", ratio)
