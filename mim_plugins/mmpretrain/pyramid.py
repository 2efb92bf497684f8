"""A plain ViT's features at four scales, for FPN in MMDetection."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .._check import check_int


@MODELS.register_module()
class ViTPyramid(BaseModule):
    """Four feature maps of stride 16 to strides 4, 8, 16 and 32.

    Li et al., "Benchmarking Detection Transfer Learning with Vision Transformers", 2021,
    section 2, which MAE follows for detection: the first map is upsampled by four (two
    transposed convolutions with batch normalisation and GELU between them), the second by
    two, the third stays, the fourth is max-pooled. Registered in mmengine's root registry,
    where MMDetection finds it; its stock FPN follows.

    Args:
        embed_dims (int): Channels of the maps. Defaults to 768.

    Raises:
        ValueError: If ``embed_dims`` is not positive.
    """

    def __init__(self, embed_dims: int = 768) -> None:
        super().__init__()
        check_int("embed_dims", embed_dims)

        def double() -> nn.Module:
            return nn.ConvTranspose2d(embed_dims, embed_dims, kernel_size=2, stride=2)

        self.scales = nn.ModuleList(
            [
                nn.Sequential(double(), nn.BatchNorm2d(embed_dims), nn.GELU(), double()),
                double(),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, stride=2),
            ]
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Four maps ``(B, C, h, w)`` to ``4h``, ``2h``, ``h`` and ``h / 2`` rows."""
        if len(inputs) != len(self.scales):
            raise ValueError(f"inputs must be {len(self.scales)} feature maps, got {len(inputs)}")
        return tuple(scale(each) for scale, each in zip(self.scales, inputs, strict=True))
