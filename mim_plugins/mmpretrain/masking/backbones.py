"""Stock backbones whose masks come from a mask generator of this package."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models.selfsup import MAEHiViT, MAEViT
from mmpretrain.registry import MODELS, TASK_UTILS
from torch import Tensor

from ..._check import check_int
from ...masking import Masking, PatchMask, RandomMasking
from ..encoders import with_encoder


def build_masking(
    masking: dict | Masking | None, mask_generator: dict | Masking | None = None
) -> Masking:
    """The masking of a model, which owns ratio and patch size; None is ``RandomMasking``.

    A config is one in TASK_UTILS; its ``base`` may be a config too. ``mask_generator`` is the
    old name of ``masking``.

    Raises:
        TypeError: If ``masking`` is something else, or both names are given.
    """
    if mask_generator is not None:
        if masking is not None:
            raise TypeError("masking and mask_generator, its old name, exclude each other")
        masking = mask_generator
    if masking is None:
        return RandomMasking()
    if isinstance(masking, dict):
        if "type" not in masking:
            raise ValueError(f"masking must name its type, got {masking!r}")
        if isinstance(masking.get("base"), dict):
            masking = {**masking, "base": TASK_UTILS.build(masking["base"])}
        masking = TASK_UTILS.build(masking)
    if not isinstance(masking, Masking):
        raise TypeError(
            f"masking must be a config of a masking, a Masking or None, got {masking!r}"
        )
    return masking


class _Masked(BaseModule):
    """A backbone of MAE whose masks are drawn by its ``masking``."""

    mask_ratio: float
    _patch_size: int

    def __init__(
        self,
        *args: Any,
        masking: dict | Masking | None = None,
        mask_generator: dict | Masking | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.masking = with_encoder(build_masking(masking, mask_generator), self)

    def draw_mask(self, images: Tensor) -> PatchMask:
        """Masks of ``images``, at the ``mask_ratio`` that the backbone has now.

        At 0, the plain autoencoder, all patches are kept, shuffled as by the stock backbone.
        """
        if self.mask_ratio == 0:
            num = images.shape[2] * images.shape[3] // self._patch_size**2
            return PatchMask.from_scores(torch.rand(len(images), num, device=images.device), num)
        return self.masking(images, mask_ratio=self.mask_ratio, patch_size=self._patch_size)

    def extra_repr(self) -> str:
        return f"masking={self.masking}"

    def _check_masking(self, height: int, width: int) -> None:
        """Fail at construction rather than in the first step."""
        if self.mask_ratio != 0:
            self.masking.layout(
                height, width, mask_ratio=self.mask_ratio, patch_size=self._patch_size
            )

    def _patch_mask(self, images: Tensor, mask: object, num_patches: int) -> PatchMask:
        """The mask that ``mask``, an argument of ``forward``, means."""
        if mask is True:
            mask = self.draw_mask(images)
        if isinstance(mask, Tensor):
            mask = PatchMask.from_mask(mask.to(images.device))
        if not isinstance(mask, PatchMask):
            raise TypeError(
                "mask must be True, a PatchMask, a tensor (B, N) or (B, rows, columns) with "
                f"True = removed, None or False, got {mask!r}"
            )
        if mask.ids_shuffle.shape[1] != num_patches:
            raise ValueError(
                f"mask and images must have the model's {num_patches} patches, got "
                f"{mask.ids_shuffle.shape[1]} for images of {images.shape[2]} x {images.shape[3]}"
            )
        return mask


@MODELS.register_module()
class MaskedMAEViT(_Masked, MAEViT):
    """Stock ``MAEViT`` with a masking of one's choice.

    With ``RandomMasking`` (the default) it equals ``MAEViT`` bit for bit under the same
    seed. Parameters and ``state_dict`` are the stock ones: checkpoints load in upstream's
    own linear-probe and fine-tune configs.

    Args:
        *args, **kwargs: Those of ``MAEViT``. ``mask_ratio``, which may be changed between
            steps, and ``patch_size`` are also the masking's.
        masking (dict | Masking, optional): A masking of :mod:`mim_plugins.masking`, e.g.
            ``dict(type='DPPMasking', tau=0.5)`` or ``dict(type='ComplementaryMasking',
            num_masks=4, base=dict(type='DPPMasking'))``. Defaults to None, random masking.
        mask_generator: The old name of ``masking``.

    Raises:
        TypeError: If ``masking`` is no masking.
        ValueError: If it disagrees with the backbone or does not suit ``img_size``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        height, width = self.img_size
        rows, cols = self.patch_resolution
        if height // rows != width // cols:
            raise ValueError(f"patch_size must be square, got {height // rows} x {width // cols}")
        self._patch_size = height // rows
        self._check_masking(height, width)

    def forward(
        self, x: Tensor, mask: bool | PatchMask | Tensor | None = True
    ) -> tuple[Tensor, Tensor, Tensor] | tuple[Tensor, ...]:
        """Encode the visible patches of masked images, or whole images.

        Args:
            x: Images ``(B, 3, H, W)``.
            mask: True draws masks; a :class:`PatchMask` of M * B rows, or a tensor
                ``(M * B, N)`` or ``(M * B, rows, columns)`` with True or 1 = removed, is
                used as it is; None or False encodes the whole images, as the stock
                ``VisionTransformer`` does.

        Returns:
            With masks: latent ``(M * B, 1 + K, C)`` with the class token first, mask
            ``(M * B, N)`` float (1 = removed) and ids_restore ``(M * B, N)``, where M is 1
            unless the masking draws several masks per image. Patches are embedded
            once for all masks, and the visible sets encoded as one batch. Without: the
            outputs of the stages, as stock.

        Raises:
            TypeError: If ``mask`` is something else.
            ValueError: If ``mask`` has not N patches, its rows are no multiple of B or do
                not remove equally many.
        """
        if mask is None or mask is False:
            return super().forward(x, mask=None)
        patch_mask = self._patch_mask(x, mask, self.num_patches)

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
class MaskedMAEHiViT(_Masked, MAEHiViT):
    """Stock ``MAEHiViT`` with a masking of one's choice, one mask per image.

    With ``RandomMasking`` (the default) it equals ``MAEHiViT`` bit for bit under the same
    seed; the ``state_dict`` is the stock one.

    Args:
        *args, **kwargs: Those of ``MAEHiViT``. ``mask_ratio``, which may be changed between
            steps, and ``patch_size`` are also the masking's.
        masking, mask_generator: As of :class:`MaskedMAEViT`.

    Raises:
        TypeError: If ``masking`` is no masking.
        ValueError: If it disagrees with the backbone, does not suit ``img_size`` or draws
            several masks per image.
    """

    def __init__(self, *args: Any, img_size: int = 224, **kwargs: Any) -> None:
        super().__init__(*args, img_size=check_int("img_size", img_size), **kwargs)
        self._patch_size = self.patch_size
        if self.masking.num_masks > 1:
            raise ValueError(f"masking must draw one mask per image for HiViT, got {self.masking}")
        try:
            self._check_masking(img_size, img_size)
        except ValueError as error:
            raise ValueError(f"img_size={img_size} does not suit the masks: {error}") from error
        self._asked: PatchMask | None = None

    def forward(
        self, x: Tensor, mask: bool | PatchMask | Tensor | None = True
    ) -> tuple[Tensor, ...]:
        """As ``MAEHiViT``'s, with ``mask`` as of :class:`MaskedMAEViT`, one per image."""
        if mask is None or mask is False:
            return super().forward(x, mask=None)
        self._asked = self._patch_mask(x, mask, self.num_patches)
        try:
            return super().forward(x)
        finally:
            self._asked = None

    def masking_id(self, batch_size: int, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """``ids_keep``, ``ids_restore`` and ``mask`` (1 = removed) for ``forward``."""
        patch_mask = self._asked
        assert patch_mask is not None
        if len(patch_mask.ids_shuffle) != batch_size:
            raise ValueError(
                f"mask must have {batch_size} rows, the images, got {len(patch_mask.ids_shuffle)}"
            )
        return patch_mask.ids_keep, patch_mask.ids_restore, patch_mask.mask.float()


def _take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens ``ids (M * B, K)`` of ``tokens (B, N, C)``: ``(M * B, K, C)``, mask by mask."""
    (batch, _, dims), (rows, num) = tokens.shape, ids.shape
    if rows % batch:
        raise ValueError(f"mask must have a multiple of {batch} rows, the images, got {rows}")
    ids = ids.view(-1, batch, num).transpose(0, 1).reshape(batch, -1)
    taken = torch.gather(tokens, dim=1, index=ids[:, :, None].expand(-1, -1, dims))
    return taken.view(batch, -1, num, dims).transpose(0, 1).reshape(rows, num, dims)
