"""What the masks of a running pipeline locate, and what its model reconstructs."""

from __future__ import annotations

from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmpretrain.models.selfsup import MAE, SimMIM
from mmpretrain.registry import HOOKS
from torch import Tensor

from ..._observe import observing
from ...analysis.observed_masks import ObservedMasks
from .features import StepCapture, first_view, unwrap
from .hook import MonitorHook
from .reconstruction import reconstruct, step_mask


@HOOKS.register_module()
class HierarchicalMaskingAnalyzer(MonitorHook):
    """Reports how high the latents sit that a pipeline's own masks locate.

    Watches the masks of the first steps of each interval, wherever they are drawn (see
    :class:`MaskVisualizationHook` for the algorithms), and locates their latents in a
    quadtree over the patches by Theorem 1 of Kong et al., "Understanding Masked Autoencoders
    via Hierarchical Latent Variable Models", CVPR 2023. For MAE and SimMIM it also scores
    reconstructions of unmasked training images of at least 16 pixels a side (section 3.1).

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
        *,
        interval: int = 1,
        by_epoch: bool = True,
        num_masks: int = 1024,
        num_images: int = 32,
        branching: int = 2,
    ) -> None:
        super().__init__("hierarchical_masking", interval, by_epoch)
        self.observed = ObservedMasks(num_masks, branching, num_images=num_images)
        self._step: StepCapture | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Have the step's batch and encoder output kept, unless there are masks enough."""
        if not self.observed.is_full and is_main_process():
            self._step = StepCapture(unwrap(runner.model), "backbone")

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Take the step's masks; report if so configured."""
        if self._step is not None:
            data, kept = self._step.release()
            self._step = None
            mask = step_mask(unwrap(runner.model), data, kept, type(self).__name__)
            self.observed.add(mask, first_view(data["inputs"]))
        super().after_train_iter(runner, batch_idx)

    def figures(self, runner: Runner) -> dict[str, float]:
        """The abstraction of the masks seen, and scores of reconstructions; on the first rank."""
        model = unwrap(runner.model)

        def reconstructed(images: Tensor) -> tuple[Tensor, Tensor]:
            with observing(model):
                return reconstruct(model, images)

        return self.observed.report(reconstructed if isinstance(model, MAE | SimMIM) else None)
