"""lightly's reconstruction criteria without the boundary of the masked region."""

from __future__ import annotations

from math import isqrt
from typing import Any

from lightly.models import utils
from lightly.models.modules.masked_vision_transformer_decoder import (
    MaskedVisionTransformerDecoder,
)
from torch import Tensor, nn

from ..._check import check_int
from ..._pixels import patchify
from ...regularizers.boundary import boundary_weights, check_boundary, weighted_mean
from ..watch import Encoding, MaskWatch, encoders, prefix_tokens


class BoundaryCriterion(nn.Module):
    """The ``criterion`` of a stock MAE or SimMIM module, neglecting boundary pixels.

    Kong et al., CVPR 2023, section 3.6; see
    :func:`mim_plugins.regularizers.boundary_weights`. It replaces the module's criterion
    and keeps its error, squared or absolute::

        model = MAE(...)
        model.criterion = BoundaryCriterion(model, width_px=2)

    With ``width_px=0`` it calls the stock criterion: bit for bit the same. The
    ``state_dict`` stays as it is.

    Args:
        model: A module with one MaskedVisionTransformer of lightly, and a ``criterion``
            ``MSELoss`` or ``L1Loss`` called with predictions and targets of the masked
            patches, each ``(B, M, p * p * C)``, as lightly's MAE and SimMIM call it.
        width_px: Width of the boundary in pixels.
        boundary_weight: Weight of boundary pixels, in [0, 1]. Default: 0, ignored.
        channels: C. Default: 3.

    Raises:
        TypeError: If the module has no such encoder or criterion.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, model: nn.Module, width_px: int, *, boundary_weight: float = 0.0, channels: int = 3
    ) -> None:
        super().__init__()
        check_boundary(width_px, boundary_weight)
        criterion: Any = getattr(model, "criterion", None)
        if type(criterion) not in (nn.MSELoss, nn.L1Loss) or criterion.reduction != "mean":
            raise TypeError(
                "model.criterion must be MSELoss() or L1Loss(), whose errors can be weighted "
                f"pixel by pixel, got {criterion!r}"
            )
        self.stock = criterion
        self.width_px = width_px
        self.boundary_weight = boundary_weight
        self.channels = check_int("channels", channels)
        self._step: dict[str, Any] = {}
        if not width_px:
            return
        found = encoders(model, type(self).__name__)
        if len(found) > 1:
            raise TypeError(f"model must have one encoder, got {len(found)}")
        self._prefix = prefix_tokens(found[0])
        MaskWatch(found[0], self._encoder_saw)
        # MAE's encoder is told what to keep; the order of what is masked, its decoder.
        for module in model.modules():
            if isinstance(module, MaskedVisionTransformerDecoder):
                module.register_forward_pre_hook(self._decoder_saw, with_kwargs=True)

    def _encoder_saw(self, seen: Encoding) -> None:
        self._step = {
            "size": seen.images.shape[2:],
            "removed": seen.removed,
            "idx_mask": seen.idx_mask,
        }

    def _decoder_saw(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        idx_mask = kwargs.get("idx_mask", args[1] if len(args) > 1 else None)
        if idx_mask is not None and self._step:
            self._step["idx_mask"] = idx_mask

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``(B, M, p * p * C)`` twice to a scalar."""
        if not self.width_px:
            return self.stock(prediction, target)
        step, self._step = self._step, {}
        if step.get("idx_mask") is None:
            raise RuntimeError(
                "BoundaryCriterion saw no masks in this step: it needs lightly's "
                "MaskedVisionTransformer with, for MAE, a MaskedVisionTransformerDecoder"
            )
        side = isqrt(prediction.shape[2] // self.channels)
        if side**2 * self.channels != prediction.shape[2]:
            raise ValueError(
                f"channels={self.channels} does not fit the predictions, {prediction.shape[2]} "
                "values per patch"
            )
        grid = (step["size"][0] // side, step["size"][1] // side)
        weights = boundary_weights(
            step["removed"], grid, side, self.width_px, boundary_weight=self.boundary_weight
        )
        weights = patchify(weights[:, None], side)  # (B, N, p * p), and of these the masked ones
        weights = utils.get_at_index(weights, step["idx_mask"] - self._prefix)[..., None]
        error = type(self.stock)(reduction="none")(prediction.float(), target.float())
        return weighted_mean(error.unflatten(2, (side * side, self.channels)), weights)

    def extra_repr(self) -> str:
        return f"width_px={self.width_px}, boundary_weight={self.boundary_weight}"
