"""Stock algorithms with terms added to their reconstruction loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.models.selfsup import (
    MAE,
    BaseSelfSupervisor,
    MAEHiViT,
    MAEViT,
    SimMIM,
    SimMIMSwinTransformer,
)
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ... import regularizers as core
from ..._check import check_list, check_weight
from ...regularizers import (
    MutualInformationLoss,
    Step,
    UniformityLoss,
    named_terms,
    term_losses,
)
from ..encoders import num_prefix_tokens
from ..masking.backbones import MaskedMAEHiViT, MaskedMAEViT
from ..masking.simmim_vit import SimMIMViT

for _name in core.__all__:
    _term = getattr(core, _name)
    if hasattr(_term, "name"):  # a term, and no base class or function
        MODELS.register_module(module=_term)

# Under the names of mmpretrain's own parts too.
UniformityHead = UniformityLoss
MutualInformationHead = MutualInformationLoss
MODELS.register_module(name="UniformityHead", module=UniformityLoss)
MODELS.register_module(name="MutualInformationHead", module=MutualInformationLoss)


class _Logged(dict):
    """Log entries, fetched from the device together when the runner reads them."""

    def items(self) -> Any:
        values = torch.cat([value.detach().reshape(1) for value in self.values()])
        return dict(zip(self, values.cpu(), strict=True)).items()


class _Regularized(BaseSelfSupervisor):
    """``regularizers=[...]`` for an algorithm."""

    def __init__(
        self, *args: Any, regularizers: Sequence[dict | nn.Module] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        terms = check_list("regularizers", regularizers)
        built = [MODELS.build(term) if isinstance(term, dict) else term for term in terms]
        self.num_prefix_tokens = num_prefix_tokens(self.backbone)
        self.regularizers = named_terms(built, class_token=self.num_prefix_tokens > 0)

    def _terms(self, latent: Tensor, **step: Any) -> dict[str, Tensor]:
        step["num_prefix_tokens"] = self.num_prefix_tokens
        if getattr(self.backbone, "final_norm", False):
            step["final_norm"] = self.backbone.norm1
        return term_losses(self.regularizers, Step(latent, **step))

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """As upstream's."""
        loss, logged = super().parse_losses(losses)
        return loss, _Logged(logged)


class _UniformityPreset(_Regularized):
    """The uniformity term as the only regularizer, by its weight."""

    def __init__(
        self,
        *args: Any,
        uniformity_weight: float = 0.01,
        token: str = "cls",
        official_gather: bool = False,
        double_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        check_weight("uniformity_weight", uniformity_weight)
        term = UniformityLoss(
            uniformity_weight,
            token=token,
            official_gather=official_gather,
            double_norm=double_norm,
        )
        super().__init__(*args, regularizers=[term], **kwargs)


@MODELS.register_module()
class RegularizedMAE(_Regularized, MAE):
    """Stock ``MAE`` plus weighted terms on the encoder's output, each logged by its name.

    ``UniformityHead`` is logged as ``loss_uniformity``. A term of weight 0 is left out, so
    that the step is the stock one bit for bit. The backbone may draw several masks per image
    (``ComplementaryMasking``): targets are computed once for all of them. Masks that come
    with the data, as for SimMIM, take the place of the backbone's. Where nothing is removed
    (``mask_ratio=0``), a plain autoencoder, the loss is taken over all patches.

    Args:
        *args, **kwargs: Those of ``MAE``.
        regularizers (Sequence[dict]): Configs of the terms, e.g.
            ``[dict(type='UniformityHead', weight=0.01)]``. Defaults to none.

    Raises:
        TypeError: If the backbone is one of SimMIM, or masks come with the data and it is none
            of this package.
        ValueError: If two terms have the same name, one takes [CLS] and the backbone has
            none, or only some images have masks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.backbone, (SimMIMSwinTransformer, SimMIMViT)):
            raise TypeError(
                "backbone must be one of MAE, e.g. MAEViT or MaskedMAEViT, got "
                f"{type(self.backbone).__name__}: use RegularizedSimMIM, USimMIM or MISimMIM"
            )

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Reconstruction loss ``loss`` and one entry per term, to be summed by the runner."""
        given = self._given_mask(data_samples)
        latent, mask, ids_restore = self.backbone(inputs, *given)
        prediction = self.neck(latent, ids_restore)
        sees_all = latent.shape[1] - self.num_prefix_tokens == mask.shape[1]
        target = torch.ones_like(mask) if sees_all else mask
        losses = {"loss": self._reconstruction_loss(prediction, inputs, target)}
        step = {"images": inputs, "prediction": prediction, "mask": mask}
        losses.update(self._terms(latent, **step, num_masks=len(latent) // len(inputs)))
        return losses

    def _given_mask(self, data_samples: list[DataSample] | None) -> tuple[Tensor, ...]:
        """The masks that came with the data, if any did."""
        masks = [s.mask for s in data_samples or () if s is not None and "mask" in s]
        if not masks:
            return ()
        if len(masks) < len(data_samples or ()):
            raise ValueError("data_samples must have a mask each, or none of them, got some")
        if not isinstance(self.backbone, (MaskedMAEViT, MaskedMAEHiViT)):
            raise TypeError(
                f"{type(self.backbone).__name__} draws its own masks, but data_samples have masks: "
                "use MaskedMAEViT or MaskedMAEHiViT"
            )
        return (torch.stack(masks),)

    def _reconstruction_loss(self, prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        num_masks = len(mask) // len(images)
        if num_masks == 1:
            return self.head.loss(prediction, images, mask)
        if type(self.head) is MAEPretrainHead:
            target = self.head.construct_target(images).repeat(num_masks, 1, 1)
            return self.head.loss_module(prediction, target, mask)
        parts = zip(prediction.chunk(num_masks), mask.chunk(num_masks), strict=True)
        return torch.stack([self.head.loss(p, images, m) for p, m in parts]).mean()


@MODELS.register_module()
class UMAE(_UniformityPreset, RegularizedMAE):
    """U-MAE: ``RegularizedMAE`` with the uniformity term (Zhang et al., NeurIPS 2022).

    Args:
        *args, **kwargs: Those of ``MAE``.
        uniformity_weight (float): The paper's lambda on l2-normalised features. Its sources
            disagree, see docs/u-mae.md. Defaults to 0.01, the official script's.
        token (str): ``'cls'`` or ``'mean'``. Defaults to ``'cls'``.
        official_gather, double_norm (bool): As of
            :class:`mim_plugins.regularizers.UniformityLoss`. Default to False.
    """


@MODELS.register_module()
class RegularizedSimMIM(_Regularized, SimMIM):
    """Stock ``SimMIM`` plus weighted terms on the encoder's output, each logged by its name.

    The encoder sees all positions. Terms on the mean token take the visible ones only: a
    feature cell is visible if any of its patches is. Terms on [CLS] need a backbone that has
    one, ``SimMIMViT``; upstream's ``SimMIMSwinTransformer`` has none.

    Args:
        *args, **kwargs: Those of ``SimMIM``.
        regularizers (Sequence[dict]): Configs of the terms, as in :class:`RegularizedMAE`.

    Raises:
        TypeError: If the backbone is one of MAE.
        ValueError: If two terms have the same name, or one takes [CLS] and the backbone has
            none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.backbone, (MAEViT, MAEHiViT)):
            raise TypeError(
                "backbone must be one of SimMIM, SimMIMSwinTransformer or SimMIMViT, got "
                f"{type(self.backbone).__name__}: use RegularizedMAE, UMAE or MIMAE"
            )

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Reconstruction loss ``loss`` and one entry per term, to be summed by the runner."""
        mask = torch.stack([data_sample.mask for data_sample in data_samples])
        return self._losses(inputs, mask, num_masks=1)

    def _losses(self, inputs: Tensor, mask: Tensor, num_masks: int) -> dict[str, Tensor]:
        latent = self.backbone(inputs, mask)
        prediction = self.neck(latent[0])
        losses = {"loss": self.head.loss(prediction, inputs, mask)}
        features = latent[-1]
        if features.ndim == 4:
            cells = features.shape[2:]
            features = features.flatten(2).transpose(1, 2)
        else:
            cells = latent[0].shape[2:]
        visible = nn.functional.adaptive_max_pool2d(1.0 - mask[:, None].float(), cells)[:, 0]
        step = {"images": inputs, "prediction": prediction, "mask": 1.0 - visible}
        losses.update(self._terms(features, **step, num_masks=num_masks))
        return losses


@MODELS.register_module()
class USimMIM(_UniformityPreset, RegularizedSimMIM):
    """U-SimMIM: ``RegularizedSimMIM`` with the uniformity term (Zhang et al., NeurIPS 2022).

    Args:
        *args, **kwargs: Those of ``SimMIM``.
        uniformity_weight (float): The paper's lambda. Its sources disagree, see
            docs/u-mae.md. Defaults to 0.01, appendix B.6's.
        token (str): ``'cls'`` or ``'mean'``. Defaults to ``'cls'``.
        official_gather, double_norm (bool): As of
            :class:`mim_plugins.regularizers.UniformityLoss`. Default to False.
    """
