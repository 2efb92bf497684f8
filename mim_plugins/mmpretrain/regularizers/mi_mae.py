"""MI-MAE: information terms on stock MAE and SimMIM; see docs/mi-mae.md."""

from __future__ import annotations

from typing import Any

from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..._check import check_dict
from ...masking import Masking
from ...regularizers import MutualInformationLoss
from ..masking.backbones import build_masking
from .algorithms import RegularizedMAE, RegularizedSimMIM


@MODELS.register_module()
class MIMAE(RegularizedMAE):
    """MI-MAE: ``RegularizedMAE`` with the information terms (arXiv 2502.19718).

    The backbone should draw complementary masks::

        backbone=dict(
            type='MaskedMAEViT',
            mask_generator=dict(type='ComplementaryMasking', num_masks=4))

    All its masks are encoded as one batch, patches and targets computed once. What the terms
    learn lies under ``regularizers.``, outside the backbone. With all weights 0 this is the
    stock ``MAE`` with M masks per image, and with one mask the stock ``MAE`` bit for bit.

    Args:
        backbone (dict): As above; its ``embed_dims`` are the terms' dimension.
        *args, **kwargs: The other arguments of ``MAE``.
        cross_weight (float): Of the information between latents under different masks.
            Defaults to 0.1.
        output_weight (float): Of the information between latent and removed patches.
            Defaults to 0.
        input_weight (float): Of the information between latent and visible patches.
            Defaults to 0.001.
        information (dict, optional): Further arguments of ``MutualInformationHead``, e.g.
            ``dict(token='cls', temperature=0.2)``.

    Raises:
        ValueError: If ``cross_weight`` is set and the backbone draws one mask per image, or
            an argument is out of range.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        *args: Any,
        cross_weight: float = 0.1,
        output_weight: float = 0.0,
        input_weight: float = 0.001,
        information: dict | None = None,
        **kwargs: Any,
    ) -> None:
        built = _build_backbone(backbone)
        term = _head(built.embed_dims, cross_weight, output_weight, input_weight, information)
        masking = getattr(built, "mask_generator", None)
        _check_num_masks(getattr(masking, "num_masks", 1), cross_weight, "backbone.")
        super().__init__(built, *args, regularizers=[term], **kwargs)


@MODELS.register_module()
class MISimMIM(RegularizedSimMIM):
    """The information terms of MI-MAE on SimMIM, our extension.

    Masks are drawn here instead of by the data pipeline, on the images' device; a mask in
    the data is not used. The encoder sees all positions of every masked image, as SimMIM's
    does, so that M masks cost M forward passes, run as one batch.

    Args:
        backbone (dict): ``SimMIMSwinTransformer`` or ``SimMIMViT``.
        *args, **kwargs: The other arguments of ``SimMIM``.
        mask_generator (dict): Config of a masking, e.g. ``dict(type='ComplementaryMasking',
            num_masks=2, mask_ratio=0.6, mask_unit=32)``. ``mask_ratio`` defaults to 0.6,
            SimMIM's; ``patch_size`` is the head's.
        cross_weight, output_weight, input_weight, information: As in :class:`MIMAE`.

    Raises:
        ValueError: If ``cross_weight`` is set and there is one mask per image, or an
            argument is out of range.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        *args: Any,
        mask_generator: dict,
        cross_weight: float = 0.1,
        output_weight: float = 0.0,
        input_weight: float = 0.001,
        information: dict | None = None,
        **kwargs: Any,
    ) -> None:
        built = _build_backbone(backbone)
        # What SimMIM decodes: of a Swin transformer the last stage.
        stages = getattr(built, "stages", None)
        dim = built.embed_dims if stages is None else stages[-1].out_channels
        term = _head(dim, cross_weight, output_weight, input_weight, information)
        super().__init__(built, *args, regularizers=[term], **kwargs)
        mask_ratio = 0.6
        if isinstance(mask_generator, dict):
            mask_ratio = mask_generator.get("mask_ratio", mask_ratio)
        elif isinstance(mask_generator, Masking):
            mask_ratio = mask_generator.mask_ratio
        else:
            raise TypeError(f"mask_generator must be a config of a masking, got {mask_generator!r}")
        self.mask_generator = build_masking(mask_generator, mask_ratio, self.head.patch_size)
        _check_num_masks(self.mask_generator.num_masks, cross_weight, "")

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Reconstruction loss ``loss`` and one entry per term, to be summed by the runner."""
        num_masks, side = self.mask_generator.num_masks, self.mask_generator.patch_size
        grid = (inputs.shape[2] // side, inputs.shape[3] // side)
        mask = self.mask_generator(inputs).mask.unflatten(1, grid).float()
        return self._losses(inputs.repeat(num_masks, 1, 1, 1), mask, num_masks)


def _build_backbone(backbone: dict | nn.Module) -> Any:
    if isinstance(backbone, nn.Module):
        return backbone
    if not isinstance(backbone, dict) or "type" not in backbone:
        raise TypeError(f"backbone must be a config with a type, or a module, got {backbone!r}")
    return MODELS.build(backbone)


def _head(
    dim: int,
    cross_weight: float,
    output_weight: float,
    input_weight: float,
    information: dict | None,
) -> MutualInformationLoss:
    return MutualInformationLoss(
        dim,
        cross_weight=cross_weight,
        output_weight=output_weight,
        input_weight=input_weight,
        **check_dict("information", information),
    )


def _check_num_masks(num_masks: int, cross_weight: float, owner: str) -> None:
    if cross_weight and num_masks < 2:
        raise ValueError(
            f"cross_weight={cross_weight} needs several masks per image: set {owner}mask_generator="
            "dict(type='ComplementaryMasking', num_masks=4), or cross_weight=0"
        )
