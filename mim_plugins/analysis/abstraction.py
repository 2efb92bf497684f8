"""How high in a hierarchy sit the latents that a masking locates? (section 2.3)

Kong et al., "Understanding Masked Autoencoders via Hierarchical Latent Variable Models",
CVPR 2023. What comes out is discussed in docs/hierarchical.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._check import check_choice, check_fraction, check_int
from .._tensor import check_shape
from ..masking import PatchMask
from ..masking.hierarchy import LatentHierarchy
from ._figure import new_figure
from .shared_latents import shared_latents

RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)  # section 3
QUANTITIES = ("height", "lowest", "highest", "size")  # of the located latents


class MaskAbstraction(NamedTuple):
    """Result of :func:`mask_abstraction`, float64, one row per mask, H heights.

    Where c is empty, heights are NaN.
    """

    height: Tensor
    """``(M,)`` mean height of the located latents."""
    lowest: Tensor
    """``(M,)`` height of the lowest of them: the detail that c cannot do without."""
    highest: Tensor
    """``(M,)`` height of the highest of them."""
    size: Tensor
    """``(M,)`` their number."""
    located: Tensor
    """``(M, H)`` share of the latents of height 1..H that are located."""


@torch.no_grad()
def mask_abstraction(hierarchy: LatentHierarchy, mask: Tensor) -> MaskAbstraction:
    """Heights of the latents c that each mask locates.

    Args:
        hierarchy: L latents above N observables.
        mask: ``(M, N)`` bool or 0 and 1; True or 1 = masked.

    Raises:
        TypeError, ValueError: See :func:`~mim_plugins.analysis.shared_latents`.

    Example:
        >>> hierarchy = LatentHierarchy.quadtree((4, 4))
        >>> mask = torch.zeros(2, 4, 4, dtype=torch.bool)
        >>> mask[0, 0, 0] = True  # one patch
        >>> mask[1, :2, :2] = True  # a whole block
        >>> mask_abstraction(hierarchy, mask.flatten(1)).height
        tensor([1., 2.], dtype=torch.float64)
    """
    check_shape("mask", mask, "M", "N")
    c = shared_latents(hierarchy, mask).c
    levels = torch.arange(1, hierarchy.height + 1, device=c.device)
    of_height = (hierarchy.heights.to(c.device)[:, None] == levels).double()  # (L, H)
    number = c.double() @ of_height  # (M, H)
    size = number.sum(dim=1)
    heights = torch.where(number > 0, levels.double(), torch.nan)
    empty = size == 0
    return MaskAbstraction(
        height=number @ levels.double() / torch.where(empty, torch.nan, size),
        lowest=torch.where(empty, torch.nan, heights.nan_to_num(torch.inf).amin(dim=1)),
        highest=torch.where(empty, torch.nan, heights.nan_to_num(-torch.inf).amax(dim=1)),
        size=size,
        located=number / of_height.sum(dim=0),
    )


class Estimate(NamedTuple):
    """A mean over masks, with the half-width of its confidence interval."""

    mean: Tensor
    half_width: Tensor


@dataclass(frozen=True, eq=False)
class AbstractionProfile:
    """Located latents at R mask ratios and U masking units; float64 on the CPU.

    See :class:`MaskAbstraction` for the five quantities.

    Attributes:
        mask_ratios: ``(R,)``.
        units: ``(U,)`` long, sides in pixels.
        height, lowest, highest, size: Estimates ``(R, U)``.
        located: Estimate ``(R, U, H)``.
        empty: ``(R, U)`` share of masks that locate nothing; heights leave them out.
        confidence: Of the intervals.
        samples: Independent draws (images, if several masks are drawn per image).
    """

    mask_ratios: Tensor
    units: Tensor
    height: Estimate
    lowest: Estimate
    highest: Estimate
    size: Estimate
    located: Estimate
    empty: Tensor
    confidence: float
    samples: int

    def table(self, quantity: str = "height") -> str:
        """A Markdown table, one row per masking unit, one column per mask ratio.

        Args:
            quantity: ``"height"``, ``"lowest"``, ``"highest"`` or ``"size"``.

        Raises:
            ValueError: If ``quantity`` is none of these.
        """
        check_choice("quantity", quantity, QUANTITIES)
        mean, half_width = getattr(self, quantity)
        ratios = [f"{ratio:g}" for ratio in self.mask_ratios.tolist()]
        lines = [["masking unit", *ratios], ["---"] * (len(ratios) + 1)]
        for column, unit in enumerate(self.units.tolist()):
            cells = zip(mean[:, column].tolist(), half_width[:, column].tolist(), strict=True)
            lines.append([f"{unit} px", *(f"{m:.2f} ± {h:.2f}" for m, h in cells)])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@torch.no_grad()
def abstraction_profile(
    hierarchy: LatentHierarchy,
    masking: Callable[..., Callable[..., PatchMask]],
    ratios: Sequence[float] = RATIOS,
    units: Sequence[int] | None = None,
    samples: int = 256,
    patch_size: int = 16,
    images: Tensor | None = None,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> AbstractionProfile:
    """Draw masks at every ratio and unit and locate their latents.

    Confidence intervals are normal approximations over independent draws: masks of one
    image (several draws, or the complementary masks of one call) are averaged first.

    Args:
        hierarchy: Its observables are the patches of an image, and its ``grid`` is set.
        masking: Called as ``masking(mask_ratio=..., patch_size=..., mask_unit=...)``, gives
            the mask generator, e.g. :class:`~mim_plugins.masking.RandomMasking` or a
            ``functools.partial`` of another one.
        ratios: Mask ratios. Default: those of the paper, 0.1, 0.25, 0.5, 0.75 and 0.9.
        units: Sides of the masking unit in pixels. Default: ``patch_size``.
        samples: Masks to draw (calls per image, for generators that draw several), at
            least 2. Default: 256.
        patch_size: Side of a patch in pixels. Default: 16.
        images: ``(B, C, H, W)``, B >= 2, taken in turn, for generators that look at them.
            Default: none; the generator gets blank images.
        confidence: Of the intervals, in (0, 1). Default: 0.95.
        generator: Source of the masks' randomness, on the images' device.
        batch_size: Images masked at once; 1 for generators that give all images of a batch
            the same mask, whose draws are not independent. Default: 64.

    Raises:
        ValueError: If an argument is out of range, the hierarchy has no grid, the images
            do not have its size, or ``masking`` needs images and has none.
    """
    if hierarchy.grid is None:
        raise ValueError("hierarchy must have a grid, see LatentHierarchy")
    if units is None:
        units = (patch_size,)
    for name, values in (("ratios", ratios), ("units", units)):
        if len(values) == 0:
            raise ValueError(f"{name} must name at least one value")
    check_int("samples", samples, 2)
    check_int("batch_size", batch_size)
    check_fraction("confidence", confidence)
    height, width = (side * patch_size for side in hierarchy.grid)
    if images is not None:
        check_shape("images", images, "B >= 2", "C", height, width)  # grid times patch_size
    maskings = [
        masking(mask_ratio=ratio, patch_size=patch_size, mask_unit=unit)
        for ratio, unit in product(ratios, units)
    ]
    for one in maskings:
        if images is None and getattr(one, "depends_on_images", False):
            raise ValueError(f"images must be given for {one}, whose masks depend on them")
    device = generator.device if generator is not None else torch.device("cpu")
    blank = torch.zeros(1, device=device).expand(samples, 1, height, width)
    inputs = blank if images is None else images[:samples]
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    rows = []
    rounds = -(-samples // len(inputs))
    for one in maskings:
        parts = [_draw(hierarchy, one, inputs, generator, batch_size) for _ in range(rounds)]
        rows.append(torch.stack(parts).nanmean(dim=0))
    draws = torch.stack(rows).unflatten(0, (len(ratios), len(units)))  # (R, U, n, quantities)
    number = (~draws.isnan()).sum(dim=2)
    mean = draws.nanmean(dim=2)
    variance = (draws - mean[:, :, None]).square().nansum(dim=2) / (number - 1)
    half_width = torch.where(number > 1, z * (variance / number).sqrt(), torch.nan)
    return AbstractionProfile(
        mask_ratios=torch.tensor(list(ratios), dtype=torch.float64),
        units=torch.tensor(list(units)),
        **{name: Estimate(mean[..., i], half_width[..., i]) for i, name in enumerate(QUANTITIES)},
        located=Estimate(mean[..., 4:-1], half_width[..., 4:-1]),
        empty=mean[..., -1],
        confidence=confidence,
        samples=len(inputs),
    )


def _draw(
    hierarchy: LatentHierarchy,
    masking: Callable[..., PatchMask],
    images: Tensor,
    generator: torch.Generator | None,
    batch_size: int,
) -> Tensor:
    """One call per image: ``(n, 4 + H + 1)``, the numbers of an image's masks averaged."""
    rows = []
    for batch in images.split(batch_size):
        found = mask_abstraction(hierarchy, masking(batch, generator=generator).mask)
        numbers = torch.column_stack([*found, (found.size == 0).double()])
        # Generators of several masks per image return them one whole batch after another.
        rows.append(numbers.unflatten(0, (-1, len(batch))).nanmean(dim=0))
    return torch.cat(rows).cpu()


def plot_abstraction_profile(profiles: Mapping[str, AbstractionProfile]) -> Any:
    """Height and number of the located latents against the mask ratio.

    One column per masking unit, one line per named profile, bars for its confidence intervals.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``profiles`` is empty, or their units are not the same.
    """
    if not profiles:
        raise ValueError("profiles must name at least one profile")
    units = [tuple(profile.units.tolist()) for profile in profiles.values()]
    if len(set(units)) > 1:
        raise ValueError(f"profiles must have the same masking units, got {units}")
    figure, axes = new_figure(2, len(units[0]))
    top = max(profile.located.mean.shape[2] for profile in profiles.values())
    for number, (unit, (upper, lower)) in enumerate(zip(units[0], axes.T, strict=True)):
        for place, (name, profile) in enumerate(profiles.items()):
            # Side by side, else equal profiles hide each other.
            ratios = profile.mask_ratios + 0.01 * (place - (len(profiles) - 1) / 2)
            for axis, estimate in ((upper, profile.height), (lower, profile.size)):
                mean, half_width = (part[:, number].tolist() for part in estimate)
                marker = "osD^vX*P"[place % 8]
                axis.errorbar(
                    ratios.tolist(), mean, half_width, marker=marker, label=name, markersize=4
                )
        upper.set_title(f"masking unit {unit} px", fontsize=10)
        upper.set_ylim(0.8, top + 0.2)
        upper.set_yticks(range(1, top + 1))
        lower.set_yscale("log")
        for axis in (upper, lower):
            axis.set_xlabel("mask ratio")
            axis.set_xlim(0, 1)
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mean height of located latents")
    axes[1, 0].set_ylabel("number of located latents")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside upper center", ncols=4)
    return figure
