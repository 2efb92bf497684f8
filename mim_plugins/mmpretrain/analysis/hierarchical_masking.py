"""What the masks of a running pipeline locate, and what its model reconstructs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.models.selfsup import MAE, SimMIM
from mmpretrain.registry import HOOKS
from torch import Tensor, nn

from ..._check import check_int
from ..._observe import observing
from ...analysis import reconstruction_scores
from ...analysis.observed_masks import ObservedMasks
from .features import StepCapture, first_view, unwrap
from .hook import Interval
from .mask_visualization import step_mask
from .reconstruction import reconstruct


@HOOKS.register_module()
class HierarchicalMaskingAnalyzer(Hook):
    """Reports how high the latents sit that a pipeline's own masks locate.

    Watches the masks of the first steps of each interval, wherever they are drawn (see
    :class:`MaskVisualizationHook` for the algorithms), and locates their latents in a
    quadtree over the patches by Theorem 1 of Kong et al., "Understanding Masked Autoencoders
    via Hierarchical Latent Variable Models", CVPR 2023. For MAE and SimMIM it also scores
    reconstructions of unmasked training images (section 3.1).

    Every ``interval`` epochs the figures are logged as ``analysis/<name>`` (log, message
    hub, visualizer) and written as a line of
    ``<work_dir>/<timestamp>/vis_data/hierarchical_masking.jsonl``. They are saved in
    checkpoints under ``hierarchical_masking``.

    Forward hooks see the masks; nothing is drawn, and training stays bit for bit what it is
    without the hook. Only the first rank watches.

    Args:
        interval (int): Epochs, or iterations, between reports. Defaults to 1.
        by_epoch (bool): Whether ``interval`` counts epochs. Defaults to True.
        num_masks (int): Masks per report. Defaults to 1024.
        num_images (int): Images to reconstruct per report, at most a batch; 0 = none.
            Defaults to 32.
        branching (int): Of the quadtree. Defaults to 2.

    Raises:
        TypeError, ValueError: If an argument is out of range; in the first step, a TypeError
            if the algorithm has no masks.
    """

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        num_masks: int = 1024,
        num_images: int = 32,
        branching: int = 2,
    ) -> None:
        self.due = Interval(interval, by_epoch)
        self.num_images = check_int("num_images", num_images, 0)
        check_int("num_masks", num_masks)
        self.observed = ObservedMasks(num_masks, branching)
        self.history: list[dict[str, Any]] = []
        self._images: Tensor | None = None
        self._step: StepCapture | None = None
        self._handle: Any = None
        self._encoded: Any = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Have the step's batch and encoder output kept, unless there are masks enough."""
        if self.observed.is_full or not is_main_process():
            return
        self._step = StepCapture(runner)
        self._handle = unwrap(runner.model).backbone.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._encoded is None:
            self._encoded = output

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Take the step's masks; report if so configured."""
        if self._step is not None:
            data, self._step = self._step.release(), None
            self._handle.remove()
            encoded, self._encoded = self._encoded, None
            self.observed.add(step_mask(unwrap(runner.model), data, encoded))
            if self._images is None:
                self._images = first_view(data["inputs"])[: self.num_images].detach()
        if self.due.after_iter(runner):
            self.report(runner, step=runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Report, every ``interval`` epochs."""
        if self.due.after_epoch(runner):
            self.report(runner, step=runner.epoch + 1)

    def report(self, runner: Runner, step: int) -> None:
        """Log the abstraction of the masks seen, and scores of reconstructions."""
        if not is_main_process():
            return
        figures = self.observed.report()
        model, images = unwrap(runner.model), self._images
        self._images = None
        if images is not None and len(images) and isinstance(model, MAE | SimMIM):
            with observing(model):
                scores = reconstruction_scores(*reconstruct(model, images))
            figures |= {name: value.mean().item() for name, value in scores.items()}
        if not figures:
            return
        self.history.append({"step": step, "iter": runner.iter, **figures})
        logged = {f"analysis/{name}": value for name, value in figures.items()}
        for name, value in logged.items():
            runner.message_hub.update_scalar(name, value)
        runner.visualizer.add_scalars(logged, step=step)
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        runner.logger.info(f"{self.due.unit} {step}: {text}")
        folder = Path(runner.log_dir, "vis_data")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "hierarchical_masking.jsonl").open("a") as file:
            file.write(json.dumps(self.history[-1]) + "\n")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what was measured."""
        checkpoint["hierarchical_masking"] = self.history

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Continue, when resuming, from what was measured."""
        if runner._resume:
            self.history = list(checkpoint.get("hierarchical_masking", []))
