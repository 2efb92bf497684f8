"""Stock backbones whose masks come from a mask generator of this package."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.selfsup import MAEViT
from mmpretrain.registry import MODELS, TASK_UTILS
from torch import Tensor

from ..masking import Masking, PatchMask


def build_masking(
    mask_generator: dict | Masking | None, mask_ratio: float, patch_size: int
) -> Masking:
    """Build the mask generator of a backbone, which owns ratio and patch size.

    Args:
        mask_generator: A config of a masking in TASK_UTILS, a masking, or None for
            ``RandomMasking``. A config without ``mask_ratio`` and ``patch_size`` gets the
            backbone's.
        mask_ratio, patch_size: The backbone's.

    Raises:
        TypeError: If ``mask_generator`` is something else.
        ValueError: If it disagrees with the backbone.
    """
    own = {"mask_ratio": mask_ratio, "patch_size": patch_size}
    if mask_generator is None:
        mask_generator = {"type": "RandomMasking"}
    if isinstance(mask_generator, dict):
        mask_generator = TASK_UTILS.build({**own, **mask_generator})
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
            :mod:`mim_plugins.masking`, e.g. ``dict(type='DPPMasking', tau=0.5)``.
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
            mask: True draws masks; a :class:`PatchMask` is used as it is; None or False
                encodes the whole images, as the stock ``VisionTransformer`` does.

        Returns:
            With masks: latent ``(B, 1 + K, C)`` with the class token first, mask ``(B, N)``
            float (1 = removed) and ids_restore ``(B, N)``. Without: the outputs of the
            stages, as stock.
        """
        if mask is None or mask is False:
            return super().forward(x, mask=None)
        patch_mask = mask if isinstance(mask, PatchMask) else self.mask_generator(x)

        # embed patches, with position but without class token
        x = self.patch_embed(x)[0]
        x = x + self.pos_embed[:, 1:, :]

        # keep the visible ones
        ids_keep = patch_mask.ids_keep[:, :, None].expand(-1, -1, x.shape[2])
        x = torch.gather(x, dim=1, index=ids_keep)

        # prepend the class token
        cls_token = self.cls_token + self.pos_embed[:, :1, :]
        x = torch.cat((cls_token.expand(len(x), -1, -1), x), dim=1)

        for layer in self.layers:
            x = layer(x)
        x = self.norm1(x)
        return x, patch_mask.mask.float(), patch_mask.ids_restore
