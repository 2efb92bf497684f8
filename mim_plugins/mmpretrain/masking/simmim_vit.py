"""SimMIM's encoder as a ViT, which upstream lacks (it has the Swin one)."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models import BEiTPretrainViT, VisionTransformer
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class SimMIMViT(VisionTransformer):
    """Stock ``VisionTransformer`` with a mask token, for SimMIM (Xie et al., CVPR 2022).

    Mask tokens take the place of the removed patches after patch embedding and before
    position embedding, as in ``SimMIMSwinTransformer``. Apart from ``mask_token`` the
    ``state_dict`` is the stock one: checkpoints load in upstream's classification configs.

    Args:
        *args, **kwargs: Those of ``VisionTransformer``, except ``out_type`` and
            ``out_indices``. ``with_cls_token`` defaults to True.

    Raises:
        TypeError: If ``out_type`` or ``out_indices`` is given.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in ("out_type", "out_indices"):
            if name in kwargs:
                raise TypeError(f"SimMIMViT takes no {name}, got {kwargs[name]!r}")
        super().__init__(*args, out_type="raw", **kwargs)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))

    def init_weights(self) -> None:
        """Weights as in ``SimMIMSwinTransformer``: normal of 0.02, truncated."""
        super().init_weights()
        if isinstance(self.init_cfg, dict) and self.init_cfg["type"] == "Pretrained":
            return
        trunc_normal_(self.mask_token, mean=0, std=0.02)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, mean=0, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Encode images in which the masked patches are replaced by the mask token.

        Args:
            x: Images ``(B, 3, H, W)``.
            mask: ``(B, H / patch_size, W / patch_size)``, 1 = removed. None encodes whole
                images, as the stock ``VisionTransformer`` does.

        Returns:
            With a mask: the feature map ``(B, C, h, w)`` that SimMIM's decoder takes, and
            all tokens ``(B, 1 + N, C)``, class token first. Without: ``(tokens,)``.
        """
        if mask is None:
            return super().forward(x)
        x, (rows, cols) = self.patch_embed(x)
        removed = mask.flatten(1)[:, :, None].type_as(x)
        x = x * (1.0 - removed) + self.mask_token * removed
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        x = x + self.resize_pos_embed(
            self.pos_embed,
            self.patch_resolution,
            (rows, cols),
            mode=self.interpolate_mode,
            num_extra_tokens=self.num_extra_tokens,
        )
        x = self.pre_norm(self.drop_after_pos(x))
        for layer in self.layers:
            x = layer(x)
        if self.final_norm:
            x = self.norm1(x)
        patches = x[:, self.num_extra_tokens :]
        return patches.transpose(1, 2).reshape(len(x), -1, rows, cols), x


@MODELS.register_module()
class SimMIMBEiTViT(BEiTPretrainViT):
    """The ViT of SimMIM's own configs, for SimMIM.

    That is upstream's ``BEiTPretrainViT``: a shared relative position bias and layer scale, no
    position embedding. Only what it returns differs; its ``state_dict`` is the stock one, and
    checkpoints load in ``BEiTViT(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)``.

    Args:
        *args, **kwargs: Those of ``BEiTPretrainViT``.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """As of :meth:`SimMIMViT.forward`."""
        tokens = super().forward(x, mask)
        if mask is None:
            return tokens
        patches = tokens[-1][:, self.num_extra_tokens :]
        return patches.transpose(1, 2).reshape(len(x), -1, *mask.shape[1:]), tokens[-1]
