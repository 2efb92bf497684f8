"""MI-MAE: information terms on stock MAE and SimMIM; see docs/mi-mae.md."""

from __future__ import annotations

from typing import Any

from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..._check import check_dict, check_fraction
from ...masking import Masking
from ...masking.base import agree
from ...regularizers import MutualInformationLoss
from ..encoders import with_encoder
from ..masking.backbones import build_masking
from .algorithms import RegularizedMAE, RegularizedSimMIM, _Regularized


class _Informed(_Regularized):
    """The information terms as the only regularizer, by their weights."""

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
        built: Any = backbone
        if not isinstance(backbone, nn.Module):
            if not isinstance(backbone, dict) or "type" not in backbone:
                raise TypeError(
                    f"backbone must be a config with a type, or a module, got {backbone!r}"
                )
            built = MODELS.build(backbone)
        # What SimMIM decodes: of a Swin transformer the last stage.
        stages = getattr(built, "stages", None)
        term = MutualInformationLoss(
            built.embed_dims if stages is None else stages[-1].out_channels,
            cross_weight=cross_weight,
            output_weight=output_weight,
            input_weight=input_weight,
            **check_dict("information", information),
        )
        super().__init__(built, *args, regularizers=[term], **kwargs)
        self.cross_weight = cross_weight

    def _check_num_masks(self, num_masks: int, owner: str = "") -> None:
        if self.cross_weight and num_masks < 2:
            raise ValueError(
                f"cross_weight={self.cross_weight} needs several masks per image: set {owner}"
                "masking=dict(type='ComplementaryMasking', num_masks=4) (None is one random "
                "mask), or cross_weight=0"
            )


@MODELS.register_module()
class MIMAE(_Informed, RegularizedMAE):
    """MI-MAE: ``RegularizedMAE`` with the information terms (arXiv 2502.19718).

    The backbone should draw complementary masks::

        backbone=dict(
            type='MaskedMAEViT',
            masking=dict(type='ComplementaryMasking', num_masks=4))

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        masking = getattr(self.backbone, "masking", None)
        self._check_num_masks(getattr(masking, "num_masks", 1), "backbone.")


@MODELS.register_module()
class MISimMIM(_Informed, RegularizedSimMIM):
    """The information terms of MI-MAE on SimMIM, our extension.

    Masks are drawn here instead of by the data pipeline, on the images' device; a mask in
    the data is not used. The encoder sees all positions of every masked image, as SimMIM's
    does, so that M masks cost M forward passes, run as one batch.

    Args:
        backbone (dict): ``SimMIMSwinTransformer`` or ``SimMIMViT``.
        *args, **kwargs: The other arguments of ``SimMIM``.
        masking (dict): Config of a masking, e.g. ``dict(type='ComplementaryMasking',
            num_masks=2, mask_unit=32)``; the patch size is the head's.
        mask_generator: The old name of ``masking``.
        mask_ratio (float, optional): Of the masks; may be changed between steps. Defaults to
            the masking's, else 0.6, SimMIM's.
        cross_weight, output_weight, input_weight, information: As in :class:`MIMAE`.

    Raises:
        ValueError: If ``cross_weight`` is set and there is one mask per image, or an
            argument is out of range.
    """

    def __init__(
        self,
        *args: Any,
        masking: dict | Masking | None = None,
        mask_generator: dict | Masking | None = None,
        mask_ratio: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.masking = with_encoder(build_masking(masking, mask_generator), self.backbone)
        ratio = agree("mask_ratio", self.masking.mask_ratio, mask_ratio, 0.6)
        self.mask_ratio = check_fraction("mask_ratio", ratio)
        self._check_num_masks(self.masking.num_masks)

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Reconstruction loss ``loss`` and one entry per term, to be summed by the runner."""
        num_masks, side = self.masking.num_masks, self.head.patch_size
        grid = (inputs.shape[2] // side, inputs.shape[3] // side)
        mask = self.masking(inputs, mask_ratio=self.mask_ratio, patch_size=side).mask
        mask = mask.unflatten(1, grid).float()
        return self._losses(inputs.repeat(num_masks, 1, 1, 1), mask, num_masks)
