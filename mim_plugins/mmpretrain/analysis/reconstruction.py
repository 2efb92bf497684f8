"""What a step masks and reconstructs; what a stock MAE or SimMIM makes of images, as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.selfsup import MAE, MILAN, MixMIM, SimMIM, SparK
from mmpretrain.models.utils.sparse_modules import SparseHelper
from torch import Tensor, nn

from ..._observe import exchanged
from ..._pixels import grid_of, with_statistics_of
from ...masking import PatchMask
from .features import first_view, unwrap


@torch.no_grad()
def reconstruct(
    model: Any, inputs: Tensor, data_samples: Sequence | None = None, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """Reconstruct a batch with a stock MAE or SimMIM, or a subclass of either.

    Args:
        model: The algorithm. Put it in evaluation mode first.
        inputs: ``(B, 3, H, W)``, what the model's ``data_preprocessor`` returns.
        data_samples: Needed for the masks of SimMIM (key ``mask``), where ``masked``.
        masked: If False, the encoder sees every patch and every patch is predicted, as in
            figure 5 of Kong et al. (CVPR 2023), and no random number is drawn. If True, the
            model draws its own masks, and visible patches are those of the image.
            Default: False.

    Returns:
        Reconstruction and image, both ``(B, 3, H, W)`` float32 with the data preprocessor's
        normalisation undone and divided by 255: the image is in [0, 1], the reconstruction
        may leave it. A head with ``norm_pix`` predicts patches of mean 0 and variance 1:
        their own mean and variance are taken from the image.

    Raises:
        TypeError: If the model is neither MAE nor SimMIM, or predicts no pixels.
        ValueError: If ``masked`` and a sample of SimMIM has no mask.
    """
    model = unwrap(model)
    data = {"inputs": inputs, "data_samples": data_samples}
    if isinstance(model, MAE):
        encoded = model.backbone(inputs) if masked else _encode_all(model.backbone, inputs)
        predicted = model.neck(encoded[0], encoded[2])
    elif isinstance(model, SimMIM):
        rows, columns = (side // model.head.patch_size for side in inputs.shape[2:])
        mask = inputs.new_zeros(len(inputs), rows, columns)
        if masked:
            if not data_samples or any("mask" not in sample for sample in data_samples):
                raise ValueError(
                    "data_samples must hold the masks of SimMIM: put its SimMIMMaskGenerator into "
                    "the test pipeline, before PackInputs"
                )
            mask = step_mask(model, data, {}, "reconstruct").to(inputs)
        encoded = model.backbone(inputs, mask)
        predicted = model.neck(encoded[0])
    else:
        raise TypeError(f"model must be a MAE or SimMIM, got {type(model).__name__}")
    kept = {"backbone": encoded, "neck": predicted}
    reconstruction = step_reconstruction(model, inputs, kept)
    if reconstruction is None:
        raise TypeError(
            f"model must predict pixels, got a {type(model).__name__} with "
            f"{type(model.neck).__name__} and {type(model.head).__name__}"
        )
    if masked:
        removed = step_mask(model, data, kept, "reconstruct")[:, None].to(inputs)
        removed = F.interpolate(removed, inputs.shape[2:], mode="nearest").bool()
        reconstruction = torch.where(removed, reconstruction, inputs)
    return _pixels(model, reconstruction), _pixels(model, inputs)


def _encode_all(backbone: Any, inputs: Tensor) -> Any:
    """What a MAE backbone returns for masks that remove nothing, whichever way it draws them."""
    ids = torch.arange(backbone.num_patches, device=inputs.device).expand(len(inputs), -1)
    none = torch.zeros_like(ids, dtype=inputs.dtype)
    stand_ins = {
        "random_masking": lambda tokens, ratio: (tokens, none, ids),  # MAEViT, MFFViT
        "masking_id": lambda batch_size, ratio: (ids, ids, none),  # MAEHiViT
        "draw_mask": lambda images: PatchMask(ids, ids.shape[1]),  # MaskedMAEViT, MaskedMAEHiViT
    }
    with exchanged(vars(backbone), stand_ins):  # the instance's; the class keeps its own
        return backbone(inputs)


def step_mask(model: nn.Module, data: dict, kept: dict[str, Any], user: str) -> Tensor:
    """The masks of a step, ``(B, rows, columns)`` bool, True = removed.

    Args:
        model: The algorithm.
        data: What its preprocessor returned.
        kept: With what its ``backbone`` returned, and ``"backbone args"``, what it got.
        user: Who needs them.

    Raises:
        TypeError: If there are none.
    """
    samples, encoded = data.get("data_samples"), kept.get("backbone")
    given, images = kept.get("backbone args", ()), first_view(data["inputs"])
    if isinstance(model, SimMIM) and len(given) > 1:  # MISimMIM draws them, unlike SimMIM
        return given[1][: len(images)].bool()
    if samples and "mask" in samples[0]:
        return torch.stack([torch.as_tensor(sample.mask) for sample in samples]).bool()
    if isinstance(model, SparK):
        return ~SparseHelper._cur_active[:, 0]
    if isinstance(encoded, tuple) and len(encoded) > 1:
        if isinstance(model, MILAN):
            _, ids_restore, _, ids_dump = encoded[:4]
            mask = torch.zeros_like(ids_restore, dtype=torch.bool).scatter(1, ids_dump, True)
        else:
            mask = encoded[1].flatten(1).bool()
        # One mask for all (MixMIM), one for each, or several, of which the first.
        mask = mask[: len(images)].expand(len(images), -1)
        return mask.unflatten(1, grid_of(mask.shape[1], *images.shape[2:]))
    raise TypeError(
        f"{user} found no masks: {type(model).__name__} neither has them in its data samples nor "
        "returns them from its backbone as MAE does"
    )


def step_reconstruction(model: Any, images: Tensor, kept: dict[str, Any]) -> Tensor | None:
    """What a step predicted, as preprocessed images ``(B, 3, H, W)``; None if not pixels."""
    predicted, head = kept.get("neck"), model.head
    if not isinstance(predicted, Tensor):
        return None
    predicted = predicted.float()
    if predicted.ndim == 3 and hasattr(head, "unpatchify"):
        if isinstance(model, MixMIM):  # its neck predicts both images of every mixture
            mask = kept["backbone"][1]
            first, second = predicted.chunk(2)
            predicted = first * mask + second.flip(0) * (1 - mask)
        if predicted.shape[1:] != head.patchify(images[:1]).shape[1:]:
            return None
        predicted = head.unpatchify(predicted)
    predicted = predicted[: len(images)]  # of several masks per image the first
    if predicted.shape != images.shape:
        return None
    if getattr(head, "norm_pix", False):
        predicted = with_statistics_of(predicted, images, head.patch_size)
    return predicted


def _pixels(model: Any, images: Tensor) -> Tensor:
    """Undo the data preprocessor's normalisation; 255 becomes 1."""
    preprocessor = model.data_preprocessor
    images = images.float()
    if getattr(preprocessor, "_enable_normalize", False):
        images = images * preprocessor.std + preprocessor.mean
    return images / 255
