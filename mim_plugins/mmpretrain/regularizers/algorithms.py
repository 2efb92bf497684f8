"""Stock algorithms with terms added to their reconstruction loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.heads import MAEPretrainHead
from mmpretrain.models.selfsup import MAE, MAEHiViT, MAEViT, SimMIM, SimMIMSwinTransformer
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..._check import check_list, check_weight
from ...regularizers import UniformityLoss, named_terms, term_losses
from ..masking.simmim_vit import SimMIMViT


@MODELS.register_module()
class UniformityHead(UniformityLoss):
    """The uniformity term of U-MAE as a regularizer, gathered over all ranks by default.

    Args:
        weight (float): Weight of the term, the paper's lambda. Defaults to 1.
        token (str): ``'cls'`` or ``'mean'`` of the visible patch tokens. Defaults to
            ``'cls'``.
        gather_distributed (bool): Take the pairs of the global batch. Defaults to True.
    """

    def __init__(
        self, weight: float = 1.0, token: str = "cls", gather_distributed: bool = True
    ) -> None:
        super().__init__(weight, token, gather_distributed=gather_distributed)


class _Regularized:
    """``regularizers=[...]`` for an algorithm."""

    def __init__(
        self, *args: Any, regularizers: Sequence[dict | nn.Module] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        terms = check_list("regularizers", regularizers)
        for term in terms:
            if not isinstance(term, (dict, nn.Module)):
                raise TypeError(f"regularizers must be configs of terms, got {term!r}")
        built = [MODELS.build(term) if isinstance(term, dict) else term for term in terms]
        self.regularizers = named_terms(built)


class _UniformityPreset:
    """The uniformity term as the only regularizer, by its weight."""

    def __init__(
        self, *args: Any, uniformity_weight: float = 0.01, token: str = "cls", **kwargs: Any
    ) -> None:
        check_weight("uniformity_weight", uniformity_weight)
        term = {"type": "UniformityHead", "weight": uniformity_weight, "token": token}
        super().__init__(*args, regularizers=[term], **kwargs)


@MODELS.register_module()
class RegularizedMAE(_Regularized, MAE):
    """Stock ``MAE`` plus weighted terms on the encoder's output, each logged by its name.

    ``UniformityHead`` is logged as ``loss_uniformity``. A term of weight 0 is left out, so
    that the step is the stock one bit for bit. The backbone may draw several masks per image
    (``ComplementaryMasking``): targets are computed once for all of them. With a stock
    ``MAEViT`` of ``mask_ratio=0``, a plain autoencoder, the loss is taken over all patches.

    Args:
        *args, **kwargs: Those of ``MAE``.
        regularizers (Sequence[dict]): Configs of the terms, e.g.
            ``[dict(type='UniformityHead', weight=0.01)]``. Defaults to none.

    Raises:
        TypeError: If the backbone is one of SimMIM.
        ValueError: If two terms have the same type.
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
        latent, mask, ids_restore = self.backbone(inputs)
        prediction = self.neck(latent, ids_restore)
        target = mask if self.backbone.mask_ratio else torch.ones_like(mask)
        losses = {"loss": self._reconstruction_loss(prediction, inputs, target)}
        step = {"images": inputs, "prediction": prediction, "mask": mask}
        losses.update(
            term_losses(self.regularizers, latent, **step, num_masks=len(latent) // len(inputs))
        )
        return losses

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
        ValueError: If two terms have the same type, or one takes [CLS] and the backbone has
            none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.backbone, (MAEViT, MAEHiViT)):
            raise TypeError(
                "backbone must be one of SimMIM, SimMIMSwinTransformer or SimMIMViT, got "
                f"{type(self.backbone).__name__}: use RegularizedMAE, UMAE or MIMAE"
            )
        if getattr(self.backbone, "cls_token", None) is None:
            for name, term in self.regularizers.items():
                if term.weight and getattr(term, "token", None) == "cls":
                    raise ValueError(
                        f"regularizer {name} has token='cls', but {type(self.backbone).__name__} "
                        "has no class token: use token='mean', or SimMIMViT"
                    )
                if hasattr(term, "num_prefix_tokens"):
                    term.num_prefix_tokens = 0

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
        losses.update(term_losses(self.regularizers, features, **step, num_masks=num_masks))
        return losses


@MODELS.register_module()
class USimMIM(_UniformityPreset, RegularizedSimMIM):
    """U-SimMIM: ``RegularizedSimMIM`` with the uniformity term (Zhang et al., NeurIPS 2022).

    Args:
        *args, **kwargs: Those of ``SimMIM``.
        uniformity_weight (float): The paper's lambda. Its sources disagree, see
            docs/u-mae.md. Defaults to 0.01, appendix B.6's.
        token (str): ``'cls'`` or ``'mean'``. Defaults to ``'cls'``.
    """
