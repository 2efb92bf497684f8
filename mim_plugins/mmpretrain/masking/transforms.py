"""Masks drawn in the data pipeline, where SimMIM, BEiT, MaskFeat and CAE draw theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ..._check import check_int, check_share
from ...masking import DPPMasking, Masking, greedy_map
from ...masking.base import agree
from .backbones import build_masking


@TRANSFORMS.register_module()
class MaskGenerator(BaseTransform):
    """Drop-in for ``SimMIMMaskGenerator`` and ``BEiTMaskGenerator`` with masks of any masking.

    Change ``type`` in a stock pipeline, name a ``masking`` and keep the other arguments: key,
    shape, dtype and number of masked patches stay as they are. With ``RandomMasking`` it equals
    ``SimMIMMaskGenerator`` bit for bit. It must stand, like the stock generators, after the
    last transform that changes the image.

    Each mask takes one ``np.random.permutation``, as the stock generators take their numbers
    from numpy: of the main process, or of the data-loader worker that loads the image; what a
    masking needs beside it comes from torch. Workers
    do not repeat one another's masks. With a fixed ``randomness.seed`` and number of workers
    the masks are the same in every run; with another number of workers they are others. With
    ``persistent_workers=False`` mmengine seeds the workers of every epoch alike, and the
    n-th image of an epoch gets the n-th permutation again; ``EpochSeedHook`` prevents that.

    **Required Keys**:

    - img (``(H, W, C)`` or ``(H, W)``, a tensor ``(C, H, W)``, or a list with one first)

    **Added Keys**:

    - mask (``(H, W)`` int, 1 = masked)

    Args:
        masking (dict | Masking): A masking of :mod:`mim_plugins.masking` that draws one mask
            per image, e.g. ``dict(type='BlockMasking')``; it gets images ``(1, C, H, W)``,
            float32 in 0..255, channels in the pipeline's order.
        input_size (int | tuple): As SimMIM's, the side of the image in pixels; with
            ``num_masking_patches``, as BEiT's, the grid of patches. Defaults to 192.
        mask_patch_size (int): Side of a masking unit in pixels (SimMIM). Defaults to 32.
        model_patch_size (int): Side of a token in pixels (SimMIM). Defaults to 4.
        mask_ratio (float): Share of masked units (SimMIM). Defaults to 0.6.
        num_masking_patches (int, optional): Number of masked patches (BEiT). Defaults to
            None, which selects SimMIM's arguments.
        min_num_patches, max_num_patches, min_aspect, max_aspect: BEiT's arguments of its
            rectangles. Accepted and unused: they are the masking's business.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, the masking disagrees, or later if the
            image does not have the stated size.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] = 192,
        mask_patch_size: int = 32,
        model_patch_size: int = 4,
        mask_ratio: float = 0.6,
        *,
        masking: dict | Masking,
        num_masking_patches: int | None = None,
        min_num_patches: int = 4,
        max_num_patches: int | None = None,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
    ) -> None:
        sides = input_size if isinstance(input_size, tuple | list) else (input_size,) * 2
        if len(sides) != 2:
            raise ValueError(f"input_size must be an int or two, got {input_size!r}")
        height, width = (check_int("input_size", side) for side in sides)
        self.input_size = input_size
        self.masking = build_masking(masking)
        if self.masking.num_masks > 1:
            raise ValueError(f"masking must draw one mask per image, got {self.masking}")
        if self.masking.needs_model:
            raise ValueError(
                "masking must not take the features of a network ('encoder', 'timm:...') in a data "
                "pipeline, whose images are single, not normalised and far from the model: take "
                "'pooled', 'pixels' or a callable here, or draw the masks in the model "
                f"(MaskedMAEViT, MaskedMAEHiViT, MISimMIM), got {self.masking}"
            )
        if num_masking_patches is None:
            check_int("mask_patch_size", mask_patch_size)
            check_int("model_patch_size", model_patch_size)
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
            ratio = check_share("mask_ratio", mask_ratio)
            self.num_mask = int(np.ceil(self.grid[0] * self.grid[1] * ratio))
            given = f"mask_ratio={mask_ratio}"
            agree("mask_ratio", self.masking.mask_ratio, ratio)
            agree("patch_size", self.masking.patch_size, model_patch_size)
            agree("mask_unit", self.masking.mask_unit, mask_patch_size)
        else:
            self.grid = height, width
            self.scale = 1
            self.num_mask = check_int("num_masking_patches", num_masking_patches)
            given = f"num_masking_patches={num_masking_patches}"
            agree("mask_ratio", self.masking.mask_ratio, num_masking_patches / (height * width))
        self.num_units = self.grid[0] * self.grid[1]
        if not 0 < self.num_mask < self.num_units:
            raise ValueError(
                f"{given} must mask at least one and not all of {self.num_units} masking units"
            )
        self.masking.check_grid(self.grid)
        self._levels = np.arange(self.num_units - 1, -1, -1, dtype=np.float32) / self.num_units
        # Compiles now, rather than in every data-loader worker; draws nothing.
        if isinstance(self.masking, DPPMasking) and self.masking.has_compiled_path:
            self._mask(np.zeros((*self.grid, 3), dtype=np.uint8), np.arange(self.num_units))
        elif isinstance(self.masking, DPPMasking):
            greedy_map(torch.eye(2)[None], 1, noise=torch.zeros(1, 2))

    def transform(self, results: dict) -> dict:
        """Add ``mask``, drawn for ``img``, or for the first of a list of images."""
        image = results["img"]
        if isinstance(image, list | tuple):  # BEiT: the image and its target
            image = image[0]
        rows, cols = self.grid
        if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] < image.shape[2]:
            image = image.permute(1, 2, 0)  # fewer channels than columns
        image = np.asarray(image)
        if image.ndim not in (2, 3) or image.shape[0] % rows or image.shape[1] % cols:
            raise ValueError(
                f"{type(self).__name__} needs an image divisible into {rows} x {cols} masking "
                f"units, got {' x '.join(map(str, image.shape))} with input_size="
                f"{self.input_size}: it must follow the crop"
            )
        # One permutation, as SimMIMMaskGenerator draws it: random masks are equal.
        order = np.random.permutation(self.num_units)  # noqa: NPY002
        results["mask"] = self._mask(image, order)
        return results

    def _mask(self, image: np.ndarray, order: np.ndarray) -> np.ndarray:
        noise = np.empty((1, self.num_units))
        noise[0, order] = self._levels
        mask = np.ones(self.num_units, dtype=int)
        mask[self._kept(image if image.ndim == 3 else image[:, :, None], noise)] = 0
        square = mask.reshape(self.grid)
        return square.repeat(self.scale, axis=0).repeat(self.scale, axis=1)

    def _kept(self, image: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The units to keep of ``image (H, W, C)``."""
        num_keep = self.num_units - self.num_mask
        pixels = image if image.dtype == np.uint8 else image.astype(np.float32)
        if pixels.strides[1] < 0:  # a mirrored view, slow to copy in numpy
            pixels = cv2.flip(np.ascontiguousarray(pixels[:, ::-1]), 1).reshape(image.shape)
        if isinstance(self.masking, DPPMasking) and self.masking.has_compiled_path:
            height, width, channels = image.shape
            planes = pixels.reshape(1, 1, height, width * channels)
            return self.masking.choose_from_pixels(planes, channels, self.grid, num_keep, noise)[0]
        images = torch.from_numpy(np.require(pixels, np.float32, ["C", "W"])).permute(2, 0, 1)[None]
        with torch.no_grad():
            scores = self.masking.scores(
                images, self.grid, num_keep, torch.from_numpy(noise).float(), None
            )
        return scores[0].argsort()[:num_keep].numpy()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(grid={self.grid}, scale={self.scale}, "
            f"num_mask={self.num_mask}, masking={self.masking})"
        )


@TRANSFORMS.register_module()
class DPPMaskGenerator(MaskGenerator):
    """:class:`MaskGenerator` with a :class:`~mim_plugins.masking.DPPMasking`.

    Args:
        *args, **kwargs: Those of :class:`MaskGenerator`.
        method, tau, kernel, bandwidth, features: Those of the masking.
    """

    def __init__(
        self,
        *args: Any,
        method: str = "greedy",
        tau: float | None = None,
        kernel: str = "rbf",
        bandwidth: float | None = None,
        features: str | Callable[[Tensor], Tensor] = "pooled",
        **kwargs: Any,
    ) -> None:
        masking = DPPMasking(
            method=method, tau=tau, kernel=kernel, bandwidth=bandwidth, features=features
        )
        super().__init__(*args, masking=masking, **kwargs)
