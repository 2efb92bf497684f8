"""What the callbacks share: when they are due, where their figures go, and features."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from lightly.transforms.utils import IMAGENET_NORMALIZE
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ..._check import check_int
from ..._observe import observing
from ..._pixels import undo_normalization
from ..._pool import pool
from ...analysis.history import History
from ..watch import has_class_token, prefix_tokens

Features = Callable[[LightningModule, Tensor], Tensor]


class MonitorCallback(Callback):
    """Schedules and publishes; what is measured is :meth:`figures`, which subclasses give.

    Numbers are logged as ``<prefix>/<name>``, and everything is a line of ``<name>.jsonl`` in
    the trainer's log directory and saved in checkpoints, so that a resumed run continues its
    history. Only the first rank measures.

    Args:
        name: Of the file and the figure.
        every_n_epochs: Epochs between measurements; the last is measured too.

    Attributes:
        prefix: Of the published numbers.
        drawn: Whether the history is also drawn as ``<name>.png``.
    """

    prefix = "analysis"
    drawn = False

    def __init__(self, name: str, every_n_epochs: int) -> None:
        self.every_n_epochs = check_int("every_n_epochs", every_n_epochs)
        self.history = History(name)

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What to publish now: numbers, and curves as lists; empty for nothing."""
        raise NotImplementedError

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log, every ``every_n_epochs`` epochs."""
        done = trainer.current_epoch + 1
        last = done == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
        if trainer.is_global_zero and (last or done % self.every_n_epochs == 0):
            for name, value in self.measure(trainer, pl_module, done).items():
                pl_module.log(f"{self.prefix}/{name}", value, rank_zero_only=True)

    def measure(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> dict[str, float]:
        """Measure, record and draw, and return the numbers."""
        figures = self.figures(trainer, pl_module)
        if not figures:
            return {}
        folder = log_folder(trainer)
        numbers = self.history.add(figures, epoch, trainer.global_step, folder)
        if self.drawn:
            self.history.draw().savefig(folder / f"{self.history.name}.png", dpi=100)
            gc.collect()  # a figure is megabytes of reference cycles, which Python leaves for long
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """What was measured, saved in checkpoints."""
        return {"history": self.history.entries}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what was measured."""
        self.history.entries = list(state_dict.get("history", []))


def extract_features(
    trainer: Trainer,
    module: LightningModule,
    images: Tensor,
    features: Features | None = None,
    token: str = "auto",
) -> Tensor:
    """One feature per image, in evaluation mode, without gradients or traces.

    Args:
        trainer: Gives the precision.
        module: Its ``backbone`` is called, or the module itself if it has none. Of lightly's
            ``MaskedVisionTransformer`` the tokens of whole images are pooled.
        images: ``(B, C, H, W)``, on any device.
        features: Called instead as ``features(module, images)``.
        token: What is taken of tokens; see :func:`mim_plugins._pool.pool`.

    Returns:
        ``(B, D)`` float32; feature maps are averaged.
    """
    precision = trainer.precision_plugin
    images = precision.convert_input(images.to(module.device))  # bf16-true and its kin
    prefix = 1
    with observing(module), precision.forward_context():
        encoder = getattr(module, "backbone", None)
        if features is not None:
            output = features(module, images)
        elif isinstance(encoder, MaskedVisionTransformer):
            output, prefix = encoder.encode(images), prefix_tokens(encoder)
            if not has_class_token(encoder):  # the first of its registers is no feature
                output, prefix = output[:, prefix:], 0
        else:
            output = encoder(images) if isinstance(encoder, nn.Module) else module(images)
        return pool(output, token, prefix).float()


def pixels(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """The normalisation undone, float32; by default ImageNet's if there are three channels."""
    if images.shape[1] == 3:
        mean = IMAGENET_NORMALIZE["mean"] if mean is None else mean
        std = IMAGENET_NORMALIZE["std"] if std is None else std
    return undo_normalization(images, mean, std)


def log_folder(trainer: Trainer) -> Path:
    """The trainer's log directory, made if need be.

    ``trainer.log_dir`` is the same, but waits for all ranks, and only the first one writes.
    """
    logger = trainer.logger
    found = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
    folder = Path(found or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
