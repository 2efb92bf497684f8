"""Effective rank and singular spectrum of the features over training."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from ..._check import check_choice, check_int
from ..._pool import TOKENS
from ...analysis.spectrum_plot import plot_history, record_spectrum
from .features import check_dataloader, extract_features, fixed_images, unwrap
from .hook import Interval, figure_to_image


@HOOKS.register_module()
class EffectiveRankHook(Hook):
    """Shows whether features collapse: their effective rank and singular spectrum.

    Before training and every ``interval`` epochs the unmasked features of the same
    ``num_images`` images are taken, see :func:`.features.extract_features`. The rank is
    logged as ``analysis/effective_rank`` (log, message hub, visualizer), the figure as the
    visualizer's image ``singular_spectrum``, and the spectra are lines of
    ``<work_dir>/<timestamp>/vis_data/singular_spectrum.jsonl``. They are saved in
    checkpoints under ``effective_rank``, so that a resumed run continues the figure.

    Only the first rank computes. Training stays bit for bit what it is without the hook.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022, figures 1b and 1c, appendix B.1.

    Args:
        interval (int): Epochs, or iterations, between measurements. Defaults to 1.
        by_epoch (bool): Whether ``interval`` counts epochs. Defaults to True.
        num_images (int): Number of images, at least 2. Defaults to 100, the paper's.
        dataloader (dict, optional): Data loader config, with ``dataset`` and ``batch_size``,
            whose images are taken, evenly spaced. Defaults to None: the training data set,
            through its own pipeline.
        token (str): Which feature a vision transformer has: ``'cls'``, ``'mean'`` of the
            patches, or ``'auto'``: [CLS] if there is one. Defaults to ``'auto'``.
        batch_size (int): Images encoded at once. Defaults to 50.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        num_images: int = 100,
        dataloader: dict | None = None,
        token: str = "auto",
        batch_size: int = 50,
    ) -> None:
        self.due = Interval(interval, by_epoch)
        check_int("num_images", num_images, 2)
        check_int("batch_size", batch_size)
        check_choice("token", token, TOKENS)
        if dataloader is not None:
            check_dataloader("dataloader", dataloader)
        self.num_images = num_images
        self.dataloader = dataloader
        self.token = token
        self.batch_size = batch_size
        self.images: Tensor | None = None
        self.history: list[dict[str, Any]] = []

    def before_train(self, runner: Runner) -> None:
        """Pick the images; measure the untrained features."""
        if not is_main_process():
            return
        self.images = fixed_images(runner, self.num_images, self.dataloader)
        if len(self.images) < 2:
            raise ValueError(f"the data set must have at least 2 images, got {len(self.images)}")
        if runner.iter == 0:
            self.measure(runner, step=0)

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure, every ``interval`` epochs."""
        if self.due.after_epoch(runner):
            self.measure(runner, step=runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Measure, every ``interval`` iterations if so configured."""
        if self.due.after_iter(runner):
            self.measure(runner, step=runner.iter + 1)

    def measure(self, runner: Runner, step: int) -> None:
        """Take the features, and log their rank and spectrum."""
        if not is_main_process():
            return
        device = next(unwrap(runner.model).parameters()).device
        features = torch.cat(
            [
                extract_features(runner, images.to(device), self.token)
                for images in self.images.split(self.batch_size)
            ]
        )
        folder = Path(runner.log_dir, "vis_data")
        folder.mkdir(parents=True, exist_ok=True)
        rank = record_spectrum(self.history, features, step, runner.iter, folder)
        runner.message_hub.update_scalar("analysis/effective_rank", rank)
        runner.visualizer.add_scalars({"analysis/effective_rank": rank}, step=step)
        runner.logger.info(f"{self.due.unit} {step}: effective rank {rank:.3f}")
        figure = plot_history(self.history, self.due.unit)
        runner.visualizer.add_image("singular_spectrum", figure_to_image(figure), step=step)
        del figure
        gc.collect()  # a figure is megabytes of reference cycles, which Python leaves for long

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what was measured."""
        checkpoint["effective_rank"] = self.history

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Continue, when resuming, from what was measured."""
        if runner._resume:
            self.history = list(checkpoint.get("effective_rank", []))
