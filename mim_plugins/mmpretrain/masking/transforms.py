"""DPP masks drawn in the data pipeline, where SimMIM, BEiT and MaskFeat draw theirs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ..._check import check_int, check_share
from ...masking import DPPMasking


@TRANSFORMS.register_module()
class DPPMaskGenerator(BaseTransform):
    """Drop-in for ``SimMIMMaskGenerator`` and ``BEiTMaskGenerator`` with DPP masks.

    Change ``type`` in a stock pipeline and keep the other arguments: key, shape, dtype and
    number of masked patches stay as they are. It must stand, like the stock generators,
    after the last transform that changes the image.

    Each mask takes one ``np.random.permutation``, as the stock generators take their numbers
    from numpy: of the main process, or of the data-loader worker that loads the image. Workers
    do not repeat one another's masks. With a fixed ``randomness.seed`` and number of workers
    the masks are the same in every run; with another number of workers they are others. With
    ``persistent_workers=False`` mmengine seeds the workers of every epoch alike, and the
    n-th image of an epoch gets the n-th permutation again; ``EpochSeedHook`` prevents that.

    **Required Keys**:

    - img

    **Added Keys**:

    - mask (``(H, W)`` int, 1 = masked)

    Args:
        input_size (int | tuple): As SimMIM's, the side of the image in pixels; with
            ``num_masking_patches``, as BEiT's, the grid of patches. Defaults to 192.
        mask_patch_size (int): Side of a masking unit in pixels (SimMIM). Defaults to 32.
        model_patch_size (int): Side of a token in pixels (SimMIM). Defaults to 4.
        mask_ratio (float): Share of masked units (SimMIM). Defaults to 0.6.
        num_masking_patches (int, optional): Number of masked patches (BEiT). Defaults to
            None, which selects SimMIM's arguments.
        min_num_patches, max_num_patches, min_aspect, max_aspect: BEiT's arguments of its
            rectangles. Accepted and unused: DPP masks have none.
        method, tau, kernel, bandwidth, features: See
            :class:`mim_plugins.masking.DPPMasking`; a callable for ``features`` gets
            images ``(1, C, H, W)``, float32 in 0..255, channels in the pipeline's order.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or later if the image does not have the
            stated size.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 192,
        mask_patch_size: int = 32,
        model_patch_size: int = 4,
        mask_ratio: float = 0.6,
        num_masking_patches: int | None = None,
        min_num_patches: int = 4,
        max_num_patches: int | None = None,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
        method: str = "greedy",
        tau: float | None = None,
        kernel: str = "rbf",
        bandwidth: float | None = None,
        features: str | Callable[[Tensor], Tensor] = "pooled",
    ) -> None:
        sides = input_size if isinstance(input_size, tuple | list) else (input_size,) * 2
        if len(sides) != 2:
            raise ValueError(f"input_size must be an int or two, got {input_size!r}")
        height, width = (check_int("input_size", side) for side in sides)
        self.input_size = input_size
        if num_masking_patches is None:
            check_int("mask_patch_size", mask_patch_size)
            check_int("model_patch_size", model_patch_size)
            check_share("mask_ratio", mask_ratio)
            if height % mask_patch_size or width % mask_patch_size:
                raise ValueError(
                    f"input_size must be a multiple of mask_patch_size={mask_patch_size}, "
                    f"got {input_size}"
                )
            if mask_patch_size % model_patch_size:
                raise ValueError(
                    f"mask_patch_size must be a multiple of model_patch_size={model_patch_size}, "
                    f"got {mask_patch_size}"
                )
            self.grid = height // mask_patch_size, width // mask_patch_size
            self.scale = mask_patch_size // model_patch_size
            self.num_mask = int(np.ceil(self.grid[0] * self.grid[1] * mask_ratio))
            given = f"mask_ratio={mask_ratio}"
        else:
            self.grid = height, width
            self.scale = 1
            self.num_mask = check_int("num_masking_patches", num_masking_patches)
            given = f"num_masking_patches={num_masking_patches}"
        self.num_units = self.grid[0] * self.grid[1]
        if not 0 < self.num_mask < self.num_units:
            raise ValueError(
                f"{given} must mask at least one and not all of {self.num_units} masking units"
            )
        self.masking = DPPMasking(
            method=method, tau=tau, kernel=kernel, bandwidth=bandwidth, features=features
        )
        if self.masking.compiled:  # now, rather than in every data-loader worker
            self._mask(np.zeros((*self.grid, 3), dtype=np.uint8), np.arange(self.num_units))

    def transform(self, results: dict) -> dict:
        """Add ``mask``, drawn for ``img`` ``(H, W, C)``, or the first of a list of images."""
        image = results["img"]
        if isinstance(image, list | tuple):  # BEiT: the image and its target
            image = image[0]
        image = np.asarray(image)
        rows, cols = self.grid
        if image.shape[0] % rows or image.shape[1] % cols:
            raise ValueError(
                f"DPPMaskGenerator needs an image divisible into {rows} x {cols} masking units, "
                f"got {image.shape[0]} x {image.shape[1]} with input_size={self.input_size}: it "
                "must follow the crop"
            )
        # One permutation, as SimMIMMaskGenerator draws it: with tau=1 the masks are equal.
        order = np.random.permutation(self.num_units)  # noqa: NPY002
        results["mask"] = self._mask(image, order)
        return results

    def _mask(self, image: np.ndarray, order: np.ndarray) -> np.ndarray:
        num_keep = self.num_units - self.num_mask
        if self.masking.compiled:
            return self.masking.image_mask(image, order, self.grid, num_keep, self.scale)
        noise = torch.empty(1, self.num_units)
        noise[0, order] = torch.arange(self.num_units - 1, -1, -1) / self.num_units
        image = np.ascontiguousarray(image, dtype=np.float32)
        images = torch.from_numpy(image).permute(2, 0, 1)[None]
        scores = self.masking.scores(images, self.grid, num_keep, noise, None)
        mask = np.ones(self.num_units, dtype=int)
        mask[scores[0].argsort()[:num_keep].numpy()] = 0
        mask = mask.reshape(self.grid)
        return mask.repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def __repr__(self) -> str:
        masking = self.masking
        return (
            f"{type(self).__name__}(grid={self.grid}, scale={self.scale}, "
            f"num_mask={self.num_mask}, method={masking.method!r}, tau={masking.tau}, "
            f"kernel={masking.kernel!r}, bandwidth={masking.bandwidth}, "
            f"features={masking.features!r})"
        )
