"""Masked images of one class against those of others (U-MAE, section 4.2 and B.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._check import check_choice, check_int
from .._tensor import check_shape
from ..masking import PatchMask, RandomMasking
from ._figure import new_figure


@dataclass(frozen=True, eq=False)
class ClassDistances:
    """Distances between masked images, R mask ratios.

    Attributes:
        mask_ratios: ``(R,)`` float64.
        intra: ``(R,)`` float64, mean distance of two images of one class.
        inter: ``(R,)`` float64, mean distance of two images of different classes.
    """

    mask_ratios: Tensor
    intra: Tensor
    inter: Tensor

    @property
    def relative(self) -> Tensor:
        """``(R,)``: intra over inter. Figure 2(c) puts the best mask ratio at its minimum."""
        return self.intra / self.inter


@torch.no_grad()
def class_distances(
    images: Tensor,
    labels: Tensor,
    mask_ratios: Sequence[float],
    patch_size: int = 16,
    reduction: str = "max",
    masking: Callable[..., Callable[..., PatchMask]] = RandomMasking,
    generator: torch.Generator | None = None,
    block: int = 8,
) -> ClassDistances:
    """How near are masked images of one class, and of different classes?

    Every image is masked anew at every ratio. The distance of two masked images is the
    maximum (appendix B.2) or the mean (section 4.2) of the l2 distances between every
    visible patch of one and every visible patch of the other; then the mean over all pairs
    of different images is taken.

    Under random masks the mean over patch pairs does not depend on the mask ratio in
    expectation: every pair of patches is visible equally often. Only the maximum can show
    the curves of figure 2. See docs/u-mae.md.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022.

    Args:
        images: ``(n, C, H, W)`` floating, H and W multiples of ``patch_size``.
        labels: ``(n,)`` integers.
        mask_ratios: Ratios in [0, 1); 0 leaves all patches visible.
        patch_size: Side of a patch in pixels. Default: 16.
        reduction: ``"max"`` or ``"mean"`` over patch pairs. Default: ``"max"``.
        masking: Called as ``masking(mask_ratio=..., patch_size=...)``, gives the mask
            generator. Default: :class:`~mim_plugins.masking.RandomMasking`.
        generator: Source of the masks' randomness, on the images' device.
        block: Images compared with all others at once; memory grows with
            ``block * n * K^2``, K visible patches. Default: 8.

    Raises:
        ValueError: If an argument is out of range, shapes do not fit, no class has two
            images, or there is only one class.
    """
    check_choice("reduction", reduction, ("max", "mean"))
    check_int("block", block)
    if len(mask_ratios) == 0:
        raise ValueError("mask_ratios must name at least one ratio")
    for ratio in mask_ratios:
        if not 0.0 <= ratio < 1.0:
            raise ValueError(f"mask_ratios must be in [0, 1), got {ratio}")
    check_shape("images", images, "n", "C", "H", "W")
    check_shape("labels", labels, len(images))
    if images.shape[2] % patch_size or images.shape[3] % patch_size:
        raise ValueError(
            f"image height and width must be multiples of patch_size={patch_size}, "
            f"got {images.shape[2]} x {images.shape[3]}"
        )
    equal = labels[:, None] == labels
    same, other = equal.triu(1), (~equal).triu(1)  # every pair once, no image with itself
    if not same.any():
        raise ValueError("labels must give at least one class two images")
    if not other.any():
        raise ValueError("labels must name at least two classes")

    # float64: patches may be nearly equal, and distances are differences of large squares.
    patches = F.unfold(images.double(), patch_size, stride=patch_size).transpose(1, 2)
    intra, inter = [], []
    for ratio in mask_ratios:
        visible = patches
        if ratio > 0:
            mask = masking(mask_ratio=ratio, patch_size=patch_size)(images, generator=generator)
            index = mask.ids_keep[:, :, None].expand(-1, -1, patches.shape[2])
            visible = patches.gather(1, index)
        distances = _image_distances(visible, reduction, block)
        intra.append(distances[same].mean())
        inter.append(distances[other].mean())
    ratios = torch.tensor(list(mask_ratios), dtype=torch.float64)
    return ClassDistances(ratios, torch.stack(intra).cpu(), torch.stack(inter).cpu())


def _image_distances(patches: Tensor, reduction: str, block: int) -> Tensor:
    """``(n, K, S)`` patches to ``(n, n)`` distances, ``block`` rows at a time."""
    num, visible, _ = patches.shape
    columns = patches.flatten(0, 1)
    rows = []
    for part in patches.split(block):
        pairs = torch.cdist(part.flatten(0, 1), columns).view(len(part), visible, num, visible)
        rows.append(pairs.amax(dim=(1, 3)) if reduction == "max" else pairs.mean(dim=(1, 3)))
    return torch.cat(rows)


def plot_class_distances(distances: ClassDistances) -> Any:
    """Figures 2(b) and 2(c) of the paper as a ``matplotlib.figure.Figure``.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = new_figure(1, 2)
    ratios = distances.mask_ratios.tolist()
    axes[0, 0].plot(ratios, distances.intra.tolist(), marker="o", label="same class")
    axes[0, 0].plot(ratios, distances.inter.tolist(), marker="s", label="different classes")
    axes[0, 0].set_ylabel("mean distance of two masked images")
    axes[0, 0].legend()
    axes[0, 1].plot(ratios, distances.relative.tolist(), marker="o", color="tab:green")
    axes[0, 1].set_ylabel("same class / different classes")
    for axis in axes.flat:
        axis.set_xlabel("mask ratio")
        axis.grid(alpha=0.3)
    return figure
