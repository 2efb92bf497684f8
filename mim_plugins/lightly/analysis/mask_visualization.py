"""Masks and reconstructions of a training step, as pictures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules.masked_vision_transformer_decoder import (
    MaskedVisionTransformerDecoder,
)
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchvision.io import write_png

from ..._check import check_int, check_statistics
from ..._observe import observing
from ..._pixels import grid_of, patchify, unpatchify
from ...analysis.mosaic import mask_mosaic
from ..watch import Encoding, encoders, prefix_tokens, watching
from .callback import log_folder, pixels


class MaskVisualization(Callback):
    """Pictures a training step: images, masks, and reconstructions where they are pixels.

    In the first step with a loss of every ``every_n_epochs``-th epoch it keeps what the step
    itself gives to lightly's blocks, so nothing is computed or drawn twice: the mask from
    ``MaskedVisionTransformer.encode`` (``idx_keep`` of MAE, ``idx_mask`` of SimMIM, ``mask``
    of iBOT), the prediction and its target from ``criterion``, their order from the decoder
    (MAE). Reconstructions are shown if the target is the images' own pixels. Pictures go to
    ``masks_<epoch>.png`` in the trainer's log directory and, as ``masks``, to every logger
    that takes images as TensorBoard's does.

    Args:
        every_n_epochs: Default: 1.
        num_images: Number of images, at most a batch. Default: 8.
        mean, std: The transform's normalisation, undone for the picture: a number per channel, or
            one for all. Default: ImageNet's for three channels, which is lightly's default,
            and none for others.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: When training starts, if the module has no ``MaskedVisionTransformer``.
        RuntimeError: In the first pictured step, if nothing was masked.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        num_images: int = 8,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.every_n_epochs = check_int("every_n_epochs", every_n_epochs)
        self.num_images = check_int("num_images", num_images)
        self.mean, self.std = check_statistics("mean", mean), check_statistics("std", std)
        self._watching = ExitStack()  # while a step runs that may be pictured
        self._step: _StepWatch | None = None
        self._is_due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to look at."""
        encoders(pl_module, type(self).__name__)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep what the step masks and predicts, if it is to be pictured."""
        self._watching.close()  # of a batch that the module would not have
        if not batch_idx:
            due = trainer.current_epoch % self.every_n_epochs == 0
            self._is_due = due and trainer.is_global_zero
        self._step = _StepWatch(pl_module, self._watching) if self._is_due else None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching, where a step was begun and not ended."""
        self._watching.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the picture of the step."""
        self._watching.close()
        step, self._step = self._step, None
        if step is None:
            return
        if not step.seen and not outputs:
            return  # the step left its batch out: the next one is pictured
        self._is_due = False
        picture = step.picture(self.num_images, self.mean, self.std)
        epoch = trainer.current_epoch + 1
        write_png(picture.permute(2, 0, 1), str(log_folder(trainer) / f"masks_{epoch}.png"))
        for logger in trainer.loggers:
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_image"):
                experiment.add_image("masks", picture.numpy(), epoch, dataformats="HWC")


def mask_picture(
    module: LightningModule,
    batch: Any,
    num_images: int = 8,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Images, masks that the module draws for them, and what it reconstructs, as one picture.

    The same picture as :class:`MaskVisualization` draws while training, for a module by
    itself. The module is copied: it stays as it is, and so do random states.

    Args:
        module: With a ``training_step`` and one of lightly's ``MaskedVisionTransformer``.
        batch: As its ``training_step`` takes it.
        num_images: Number of images, at most the batch. Default: 8.
        mean, std: As of :class:`MaskVisualization`.

    Returns:
        ``(height, width, 3)`` uint8 on the CPU.

    Raises:
        TypeError: If the module has no ``MaskedVisionTransformer``.
        RuntimeError: If nothing was masked.
    """
    encoders(module, "mask_picture")
    module = copy.deepcopy(module, {id(module._trainer): None})
    with observing(module), ExitStack() as stack:
        step = _StepWatch(module, stack)
        module.training_step(batch, 0)
    return step.picture(num_images, mean, std)


class _StepWatch:
    """Keeps what one step gives to lightly's blocks, while ``stack`` is open."""

    def __init__(self, module: LightningModule, stack: ExitStack) -> None:
        self.seen: dict[str, Any] = {}
        stack.enter_context(watching(encoders(module), self._see_masks))
        for part in module.modules():
            if isinstance(part, MaskedVisionTransformerDecoder):
                handle = part.register_forward_pre_hook(self._see_decoder, with_kwargs=True)
                stack.enter_context(handle)
        criterion = getattr(module, "criterion", None)
        if isinstance(criterion, nn.Module):
            stack.enter_context(criterion.register_forward_pre_hook(self._see_criterion))

    def _see_masks(self, seen: Encoding) -> None:
        self.seen.setdefault("encoding", seen)

    def _see_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.seen.setdefault("predicted_idx", kwargs.get("idx_mask"))

    def _see_criterion(self, module: nn.Module, args: tuple) -> None:
        self.seen.setdefault("criterion", args)

    @torch.no_grad()
    def picture(
        self, number: int, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> Tensor:
        """Of what was seen: ``(height, width, 3)`` uint8 on the CPU."""
        if "encoding" not in self.seen:
            raise RuntimeError("MaskVisualization saw no masked images in the training step")
        images, removed = self.seen["encoding"].images, self.seen["encoding"].removed
        grid = grid_of(removed.shape[1], *images.shape[2:])
        predicted = _reconstruction(self.seen, grid)
        return mask_mosaic(
            pixels(images[:number], mean, std),
            removed[:number].view(-1, *grid),
            None if predicted is None else pixels(predicted[:number], mean, std),
        )


def _reconstruction(seen: dict[str, Any], grid: tuple[int, int]) -> Tensor | None:
    """The images with predicted patches, if what is predicted are the images' patches."""
    encoder, images, _, index, *_ = seen["encoding"]
    index = seen.get("predicted_idx") if index is None else index
    pair = seen.get("criterion", ())
    if index is None or len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        return None
    predicted, target = pair
    patch = images.shape[2] // grid[0]
    patches = patchify(images, patch)
    where = index - prefix_tokens(encoder)
    if predicted.shape != target.shape or target.shape != (*where.shape, patches.shape[2]):
        return None
    if not torch.allclose(utils.get_at_index(patches, where), target.to(patches.dtype)):
        return None  # normalised patches, say: these are no pixels
    patches = utils.set_at_index(patches, where, predicted.to(patches.dtype))
    return unpatchify(patches, patch, *images.shape[2:])
