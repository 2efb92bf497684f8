"""Masks and reconstructions of masked image modelling, pictured while it trains."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from mmpretrain.structures import DataSample
from torch import Tensor

from ..._check import check_int
from ..._observe import observing
from ...analysis.mosaic import mask_mosaic
from .features import StepCapture, first_view, unwrap
from .hook import IntervalHook
from .reconstruction import _pixels, step_mask, step_reconstruction


@HOOKS.register_module()
class MaskVisualizationHook(IntervalHook):
    """Pictures a training step: images, masks, and reconstructions where they are pixels.

    In the first step of every ``interval``-th epoch (and of the last) the masks and
    predictions of that very step are taken by forward hooks, so nothing is computed or drawn
    twice and training stays as it is. The picture is the visualizer's image ``masks``:
    files in ``vis_data/vis_image``, and whatever else its backends are, TensorBoard for one.

    Masks are found for every masked-image-modelling algorithm of mmpretrain 1.2: those that
    the data pipeline draws (``data_samples[i].mask``: SimMIM, BEiT, MaskFeat, CAE, iTPN) and
    those that the model draws (MAE, MFF, EVA, MILAN, MixMIM, SparK, iTPN). Reconstructions
    are shown where the neck predicts pixels: MAE, MFF, MixMIM, SimMIM, SparK, iTPN with
    pixels; under ``norm_pix`` with the mean and variance of the true patch. Of BEiT, CAE,
    EVA, MILAN and MaskFeat, which predict tokens or features, only masks.

    Args:
        interval (int): Epochs, or iterations, between pictures. Defaults to 1.
        by_epoch (bool): Whether ``interval`` counts epochs. Defaults to True.
        num_images (int): Number of images, at most a batch. Defaults to 8.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: In the first pictured step, if the algorithm has no masks.
    """

    def __init__(self, *, interval: int = 1, by_epoch: bool = True, num_images: int = 8) -> None:
        super().__init__(interval, by_epoch)
        self.num_images = check_int("num_images", num_images)
        self._step: StepCapture | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Have the outputs of backbone and neck kept in a step that is to be pictured."""
        if self.by_epoch:
            due_epoch = runner.epoch % self.interval == 0 or self.is_last_train_epoch(runner)
            is_due = batch_idx == 0 and due_epoch
        else:
            is_due = self.due_after_iter(runner)
        if is_due and is_main_process():
            self._step = StepCapture(unwrap(runner.model), "backbone", "neck")

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the picture of the step."""
        if self._step is None:
            return
        step, self._step = self._step, None
        picture = _picture(unwrap(runner.model), *step.release(), self.num_images)
        number = runner.epoch + 1 if self.by_epoch else runner.iter + 1
        runner.visualizer.add_image("masks", picture.numpy(), step=number)


def mask_picture(model: Any, batch: dict, num_images: int = 8) -> Tensor:
    """Images, masks that the model draws for them, and what it reconstructs, as one picture.

    The same picture as :class:`MaskVisualizationHook` draws while training, of any model that
    it knows, for a model by itself. The model is copied: it stays as it is, and so do random
    states.

    Args:
        model: The algorithm.
        batch: As a data loader of its pipeline gives it, with ``inputs`` and
            ``data_samples``. A bare ``inputs`` ``(B, C, H, W)`` is enough where the model
            draws the masks.
        num_images: Number of images, at most the batch. Default: 8.

    Returns:
        ``(height, width, 3)`` uint8 on the CPU.

    Raises:
        TypeError: If the algorithm has no masks.
    """
    model = copy.deepcopy(unwrap(model))  # some algorithms move their state in loss()
    with observing(model):
        step = StepCapture(model, "backbone", "neck")
        inputs = batch["inputs"]
        samples = batch.get("data_samples") or [DataSample() for _ in first_view(inputs)]
        data = model.data_preprocessor({**batch, "data_samples": samples}, True)
        model(**data, mode="loss")
        return _picture(model, *step.release(), num_images)


@torch.no_grad()
def _picture(model: Any, data: dict, kept: dict[str, Any], number: int) -> Tensor:
    images = first_view(data["inputs"])
    mask = step_mask(model, data, kept, "MaskVisualizationHook")
    reconstruction = step_reconstruction(model, images, kept)
    return mask_mosaic(
        _pixels(model, images[:number]),
        mask[:number],
        None if reconstruction is None else _pixels(model, reconstruction[:number]),
    )
