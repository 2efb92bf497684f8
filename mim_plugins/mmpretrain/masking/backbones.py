"""Stock backbones whose masks come from a mask generator of this package."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.selfsup import MAEHiViT, MAEViT
from mmpretrain.registry import MODELS, TASK_UTILS
from torch import Tensor

from ..._check import check_int
from ...masking import Masking, PatchMask


def build_masking(
    mask_generator: dict | Masking | None, mask_ratio: float, patch_size: int
) -> Masking:
    """Build the mask generator of a backbone, which owns ratio and patch size.

    Args:
        mask_generator: A config of a masking in TASK_UTILS, a masking, or None for
            ``RandomMasking``. A config without ``mask_ratio`` and ``patch_size`` gets the
            backbone's, and so does a config under its key ``base``.
        mask_ratio, patch_size: The backbone's.

    Raises:
        TypeError: If ``mask_generator`` is something else.
        ValueError: If it disagrees with the backbone.
    """
    own = {"mask_ratio": mask_ratio, "patch_size": patch_size}
    if mask_generator is None:
        mask_generator = {"type": "RandomMasking"}
    if isinstance(mask_generator, dict):
        if "type" not in mask_generator:
            raise ValueError(f"mask_generator must name its type, got {mask_generator!r}")
        mask_generator = {**own, **mask_generator}
        base = mask_generator.get("base")
        if isinstance(base, dict):
            unit = {"mask_unit": mask_generator.get("mask_unit")}
            mask_generator["base"] = TASK_UTILS.build({**own, **unit, **base})
        mask_generator = TASK_UTILS.build(mask_generator)
    if not isinstance(mask_generator, Masking):
        raise TypeError(
            "mask_generator must be a config of a masking, a Masking or None, got "
            f"{mask_generator!r}"
        )
    for name, value in own.items():
        if getattr(mask_generator, name) != value:
            raise ValueError(
                f"mask_generator has {name}={getattr(mask_generator, name)}, the backbone "
                f"{value}: set {name} on the backbone only"
            )
    return mask_generator


@MODELS.register_module()
class MaskedMAEViT(MAEViT):
    """Stock ``MAEViT`` with a mask generator of one's choice.

    With ``RandomMasking`` (the default) it equals ``MAEViT`` bit for bit under the same
    seed. Parameters and ``state_dict`` are the stock ones: checkpoints load in upstream's
    own linear-probe and fine-tune configs.

    Args:
        *args, **kwargs: Those of ``MAEViT``. ``mask_ratio`` and ``patch_size`` are also the
            mask generator's.
        mask_generator (dict | Masking, optional): A masking of
            :mod:`mim_plugins.masking`, e.g. ``dict(type='DPPMasking', tau=0.5)`` or
            ``dict(type='ComplementaryMasking', num_masks=4, base=dict(type='DPPMasking'))``.
            Defaults to None, random masking.

    Raises:
        TypeError: If ``mask_generator`` is no masking.
        ValueError: If it disagrees with the backbone or does not suit ``img_size``.
    """

    def __init__(
        self, *args: Any, mask_generator: dict | Masking | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        height, width = self.img_size
        rows, cols = self.patch_resolution
        if height // rows != width // cols:
            raise ValueError(f"patch_size must be square, got {height // rows} x {width // cols}")
        self.mask_generator = build_masking(mask_generator, self.mask_ratio, height // rows)
        self.mask_generator.count(height, width)  # fails here rather than in the first step

    def forward(
        self, x: Tensor, mask: bool | PatchMask | None = True
    ) -> tuple[Tensor, Tensor, Tensor] | tuple[Tensor, ...]:
        """Encode the visible patches of masked images, or whole images.

        Args:
            x: Images ``(B, 3, H, W)``.
            mask: True draws masks; a :class:`PatchMask` of M * B rows is used as it is;
                None or False encodes the whole images, as the stock ``VisionTransformer``
                does.

        Returns:
            With masks: latent ``(M * B, 1 + K, C)`` with the class token first, mask
            ``(M * B, N)`` float (1 = removed) and ids_restore ``(M * B, N)``, where M is 1
            unless the mask generator draws several masks per image. Patches are embedded
            once for all masks, and the visible sets encoded as one batch. Without: the
            outputs of the stages, as stock.

        Raises:
            ValueError: If the rows of ``mask`` are no multiple of B.
        """
        if mask is None or mask is False:
            return super().forward(x, mask=None)
        patch_mask = mask if isinstance(mask, PatchMask) else self.mask_generator(x)

        # embed patches, with position but without class token
        x = self.patch_embed(x)[0]
        x = x + self.pos_embed[:, 1:, :]

        # keep the visible ones, of all masks of an image
        x = _take(x, patch_mask.ids_keep)

        # prepend the class token
        cls_token = self.cls_token + self.pos_embed[:, :1, :]
        x = torch.cat((cls_token.expand(len(x), -1, -1), x), dim=1)

        for layer in self.layers:
            x = layer(x)
        x = self.norm1(x)
        return x, patch_mask.mask.float(), patch_mask.ids_restore


@MODELS.register_module()
class MaskedMAEHiViT(MAEHiViT):
    """Stock ``MAEHiViT`` with a mask generator of one's choice, one mask per image.

    With ``RandomMasking`` (the default) it equals ``MAEHiViT`` bit for bit under the same
    seed; the ``state_dict`` is the stock one.

    Args:
        *args, **kwargs: Those of ``MAEHiViT``. ``mask_ratio`` and ``patch_size`` are also
            the mask generator's.
        mask_generator (dict | Masking, optional): As of :class:`MaskedMAEViT`. Defaults to
            None, random masking.

    Raises:
        TypeError: If ``mask_generator`` is no masking.
        ValueError: If it disagrees with the backbone, does not suit ``img_size`` or draws
            several masks per image.
    """

    def __init__(
        self,
        *args: Any,
        img_size: int = 224,
        mask_generator: dict | Masking | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, img_size=check_int("img_size", img_size), **kwargs)
        self.mask_generator = build_masking(mask_generator, self.mask_ratio, self.patch_size)
        if self.mask_generator.num_masks > 1:
            raise ValueError(
                f"mask_generator must draw one mask per image for HiViT, got {self.mask_generator}"
            )
        try:
            self.mask_generator.count(img_size, img_size)
        except ValueError as error:
            raise ValueError(f"img_size={img_size} does not suit the masks: {error}") from error
        self._images: Tensor | None = None

    def forward(self, x: Tensor, mask: bool | None = True) -> tuple[Tensor, ...]:
        """As ``MAEHiViT``'s; None or False encodes the whole images."""
        if mask is None or mask is False:
            return super().forward(x, mask=None)
        self._images = x
        try:
            return super().forward(x)
        finally:
            self._images = None

    def masking_id(self, batch_size: int, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """``ids_keep``, ``ids_restore`` and ``mask`` (1 = removed) of the images in ``forward``."""
        patch_mask = self.mask_generator(self._images)
        return patch_mask.ids_keep, patch_mask.ids_restore, patch_mask.mask.float()


def _take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens ``ids (M * B, K)`` of ``tokens (B, N, C)``: ``(M * B, K, C)``, mask by mask."""
    (batch, _, dims), (rows, num) = tokens.shape, ids.shape
    if rows % batch:
        raise ValueError(f"mask must have a multiple of {batch} rows, the images, got {rows}")
    ids = ids.view(-1, batch, num).transpose(0, 1).reshape(batch, -1)
    taken = torch.gather(tokens, dim=1, index=ids[:, :, None].expand(-1, -1, dims))
    return taken.view(batch, -1, num, dims).transpose(0, 1).reshape(rows, num, dims)
