"""What the masks of a running module locate, and what it reconstructs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from ..._check import check_statistics
from ..._observe import observing
from ..._pixels import grid_of
from ...analysis.observed_masks import ObservedMasks
from ..watch import Encoding, encoders, watching
from .callback import MonitorCallback
from .reconstruction import can_reconstruct, reconstruct


class HierarchicalMaskingAnalyzer(MonitorCallback):
    """Reports how high the latents sit that a module's own masks locate.

    Watches the masks that reach lightly's encoder (MAE, SimMIM, iBOT) in the first steps of
    each interval, and locates their latents in a quadtree over the patches by Theorem 1 of
    Kong et al., "Understanding Masked Autoencoders via Hierarchical Latent Variable Models",
    CVPR 2023. Modules of the shape of lightly's MAE or SimMIM also have reconstructions of
    unmasked training images of at least 16 pixels a side scored (section 3.1).

    Every ``every_n_epochs`` epochs the figures are logged as ``analysis/<name>`` and written
    as a line of ``hierarchical_masking.jsonl`` in the trainer's log directory. Only the first
    rank watches; training stays as it is.

    Args:
        every_n_epochs: Default: 1.
        num_masks: Masks per report. Default: 1024.
        num_images: Images to reconstruct per report, at most a batch; 0 = none. Default: 32.
        branching: Of the quadtree. Default: 2.
        mean, std: The transform's normalisation, undone before scoring: a number per channel, or
            one for all. Default: ImageNet's for three channels, which is lightly's default,
            and none for others.

    Raises:
        TypeError, ValueError: If an argument is out of range; when training starts, a
            TypeError if the module has no ``MaskedVisionTransformer``.

    Example:
        >>> Trainer(callbacks=[HierarchicalMaskingAnalyzer()]).fit(
        ...     model, loader
        ... )  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        num_masks: int = 1024,
        num_images: int = 32,
        branching: int = 2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__("hierarchical_masking", every_n_epochs)
        self.observed = ObservedMasks(num_masks, branching, num_images=num_images)
        self.mean, self.std = check_statistics("mean", mean), check_statistics("std", std)
        self._watching = ExitStack()  # while a step runs, of its encoders

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to watch."""
        encoders(pl_module, type(self).__name__)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the step's masks, unless there are enough."""
        self._watching.close()  # of a batch that the module would not have
        if trainer.is_global_zero and not self.observed.is_full:
            self._watching.enter_context(watching(encoders(pl_module), self._see))

    def _see(self, seen: Encoding) -> None:
        grid = grid_of(seen.removed.shape[1], *seen.images.shape[2:])
        self.observed.add(seen.removed.view(-1, *grid), seen.images)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop watching."""
        self._watching.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop watching, where a step was begun and not ended."""
        self._watching.close()

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The abstraction of the masks seen, and scores of reconstructions."""

        def reconstructed(images: Tensor) -> tuple[Tensor, Tensor] | None:
            if not can_reconstruct(pl_module, images.shape[1]):
                return None
            with observing(pl_module), trainer.precision_plugin.forward_context():
                return reconstruct(pl_module, images, self.mean, self.std)

        return self.observed.report(reconstructed)
