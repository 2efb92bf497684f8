"""Stock algorithms with terms added to their reconstruction loss."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmpretrain.models.selfsup import MAE
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..regularizers import UniformityLoss


@MODELS.register_module()
class UniformityHead(UniformityLoss):
    """The uniformity term of U-MAE as a regularizer, gathered over all ranks by default.

    Args:
        weight (float): Weight of the term, the paper's lambda. Defaults to 1.
        token (str): ``'cls'`` or ``'mean'`` of the patch tokens. Defaults to ``'cls'``.
        gather_distributed (bool): Take the pairs of the global batch. Defaults to True.
    """

    def __init__(
        self, weight: float = 1.0, token: str = "cls", gather_distributed: bool = True
    ) -> None:
        super().__init__(weight, token, gather_distributed=gather_distributed)


@MODELS.register_module()
class RegularizedMAE(MAE):
    """Stock ``MAE`` plus weighted terms on the encoder's output, each logged by its name.

    ``UniformityHead`` is logged as ``loss_uniformity``. A term of weight 0 is left out, so
    that the step is the stock one bit for bit.

    Args:
        *args, **kwargs: Those of ``MAE``.
        regularizers (Sequence[dict]): Configs of the terms, e.g.
            ``[dict(type='UniformityHead', weight=0.01)]``. Defaults to none.

    Raises:
        ValueError: If two terms have the same type.
    """

    def __init__(
        self, *args: Any, regularizers: Sequence[dict | nn.Module] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        built = [r if isinstance(r, nn.Module) else MODELS.build(r) for r in regularizers]
        names = [_log_name(type(term).__name__) for term in built]
        if len(set(names)) < len(names):
            raise ValueError(f"regularizers must be of different types, got {names}")
        self.regularizers = nn.ModuleDict(dict(zip(names, built, strict=True)))

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Reconstruction loss ``loss`` and one entry per term, to be summed by the runner."""
        latent, mask, ids_restore = self.backbone(inputs)
        prediction = self.neck(latent, ids_restore)
        losses = {"loss": self.head.loss(prediction, inputs, mask)}
        for name, term in self.regularizers.items():
            if term.weight:
                losses[f"loss_{name}"] = term(latent)
        return losses


@MODELS.register_module()
class UMAE(RegularizedMAE):
    """U-MAE: ``RegularizedMAE`` with the uniformity term (Zhang et al., NeurIPS 2022).

    Args:
        *args, **kwargs: Those of ``MAE``.
        uniformity_weight (float): The paper's lambda on l2-normalised features. Its sources
            disagree, see docs/u-mae.md. Defaults to 0.01, the official script's.
        token (str): ``'cls'`` or ``'mean'``. Defaults to ``'cls'``.
    """

    def __init__(
        self, *args: Any, uniformity_weight: float = 0.01, token: str = "cls", **kwargs: Any
    ) -> None:
        term = {"type": "UniformityHead", "weight": uniformity_weight, "token": token}
        super().__init__(*args, regularizers=[term], **kwargs)


def _log_name(cls: str) -> str:
    """``UniformityHead`` -> ``uniformity``, ``MutualInformationHead`` -> ``mutual_information``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.removesuffix("Head")).lower()
