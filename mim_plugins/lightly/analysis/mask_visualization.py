"""Masks and reconstructions of a training step, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isqrt
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from lightly.models.modules.masked_vision_transformer_decoder import (
    MaskedVisionTransformerDecoder,
)
from lightly.transforms.utils import IMAGENET_NORMALIZE
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torchvision.io import write_png

from ..._check import check_int, check_statistics
from ...analysis.mosaic import mask_mosaic
from ..watch import MaskWatch, prefix_tokens
from .callbacks import _folder, _Watch


class MaskVisualization(_Watch):
    """Pictures a training step: images, masks, and reconstructions where they are pixels.

    In the first step of every ``every_n_epochs``-th epoch it keeps what the step itself
    gives to lightly's blocks, so nothing is computed or drawn twice: the mask from
    ``MaskedVisionTransformer.encode`` (``idx_keep`` of MAE, ``idx_mask`` of SimMIM, ``mask``
    of iBOT), the prediction and its target from ``criterion``, their order from the decoder
    (MAE). Reconstructions are shown if the target is the images' own pixels. Pictures go to
    ``masks_<epoch>.png`` in the trainer's log directory and, as ``masks``, to every logger
    that takes images as TensorBoard's does.

    Args:
        every_n_epochs: Default: 1.
        num_images: Number of images, at most a batch. Default: 8.
        mean, std: The transform's normalisation, undone for the picture. Default:
            ImageNet's, which is lightly's default.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: When training starts, if the module has no ``MaskedVisionTransformer``.
        RuntimeError: In the first pictured step, if nothing was masked.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_images: int = 8,
        mean: Sequence[float] = IMAGENET_NORMALIZE["mean"],
        std: Sequence[float] = IMAGENET_NORMALIZE["std"],
    ) -> None:
        super().__init__(every_n_epochs)
        self.num_images = check_int("num_images", num_images)
        self.mean = torch.tensor(check_statistics("mean", mean))
        self.std = torch.tensor(check_statistics("std", std))
        self._seen: dict[str, Any] = {}
        self._undo: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to look at."""
        if not any(isinstance(module, MaskedVisionTransformer) for module in pl_module.modules()):
            raise TypeError(
                "MaskVisualization needs a module with one of lightly's MaskedVisionTransformer, "
                f"{type(pl_module).__name__} has none"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the step masks and predicts, if it is to be pictured."""
        if batch_idx or trainer.current_epoch % self.every_n_epochs or not trainer.is_global_zero:
            return
        for module in pl_module.modules():
            if isinstance(module, MaskedVisionTransformer):
                self._undo.append(MaskWatch(module, partial(self._see_masks, module)).remove)
            elif isinstance(module, MaskedVisionTransformerDecoder):
                handle = module.register_forward_pre_hook(self._see_decoder, with_kwargs=True)
                self._undo.append(handle.remove)
        if isinstance(getattr(pl_module, "criterion", None), nn.Module):
            handle = pl_module.criterion.register_forward_pre_hook(self._see_criterion)
            self._undo.append(handle.remove)

    def _see_masks(
        self, module: nn.Module, images: Tensor, removed: Tensor, idx_mask: Tensor | None
    ) -> None:
        for name, value in (
            ("images", images),
            ("removed", removed),
            ("idx_mask", idx_mask),
            ("prefix", prefix_tokens(module)),
        ):
            self._seen.setdefault(name, value)

    def _see_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._seen.setdefault("predicted_idx", kwargs.get("idx_mask"))

    def _see_criterion(self, module: nn.Module, args: tuple) -> None:
        self._seen.setdefault("criterion", args)

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Draw the picture of the step."""
        if not self._undo:
            return
        for undo in self._undo:
            undo()
        self._undo.clear()
        seen, self._seen = self._seen, {}
        if "images" not in seen:
            raise RuntimeError("MaskVisualization saw no masked images in the training step")
        images, removed = seen["images"], seen["removed"]
        side = isqrt(removed.shape[1])
        predicted = _reconstruction(seen)
        number = self.num_images
        picture = mask_mosaic(
            self._pixels(images[:number]),
            removed[:number].view(-1, side, side),
            None if predicted is None else self._pixels(predicted[:number]),
        )
        epoch = trainer.current_epoch + 1
        write_png(picture.permute(2, 0, 1), str(_folder(trainer) / f"masks_{epoch}.png"))
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image("masks", picture.numpy(), epoch, dataformats="HWC")

    def _pixels(self, images: Tensor) -> Tensor:
        std, mean = (value.to(images.device)[:, None, None] for value in (self.std, self.mean))
        return images.float() * std + mean


def _reconstruction(seen: dict[str, Any]) -> Tensor | None:
    """The images with predicted patches, if what is predicted are the images' patches."""
    index = seen["idx_mask"] if seen["idx_mask"] is not None else seen.get("predicted_idx")
    pair = seen.get("criterion", ())
    if index is None or len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        return None
    predicted, target = pair
    images = seen["images"]
    patch = isqrt(images.shape[2] * images.shape[3] // seen["removed"].shape[1])
    patches = utils.patchify(images, patch)
    where = index - seen["prefix"]
    if predicted.shape != target.shape or target.shape != (*where.shape, patches.shape[2]):
        return None
    if not torch.allclose(utils.get_at_index(patches, where), target.to(patches.dtype)):
        return None  # normalised patches, say: these are no pixels
    patches = utils.set_at_index(patches, where, predicted.to(patches.dtype))
    return utils.unpatchify(patches, patch, channels=images.shape[1])
