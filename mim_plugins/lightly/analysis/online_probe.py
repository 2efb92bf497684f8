"""How good are the features, while they are being trained? Linear probe and kNN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..._check import check_callable, check_choice, check_int
from ..._observe import preserve_rng
from ..._pool import TOKENS
from ...analysis.online_probe import FeatureProbe
from ..batch import Getter, check_getter, images_of, labels_of
from .callback import Features, MonitorCallback, extract_features


class OnlineProbe(MonitorCallback):
    """A linear classifier trained beside the module, and kNN accuracy, on detached features.

    After every training step the classifier, a
    :class:`~mim_plugins.analysis.linear_probe.LinearProbe`, takes one step on the unmasked
    features of the step's images (the first view), joined over all ranks. It logs
    ``train/probe_loss`` and ``train/probe_top1`` (%, of the batch, before the step); with
    ``val_dataloader`` every ``every_n_epochs`` epochs ``probe/linear_top1`` and
    ``probe/knn_top1`` (%), which are also lines of ``online_probe.jsonl`` in the trainer's log
    directory. These are the numbers of ``OnlineProbeHook`` for mmpretrain. Images labelled -1
    are left out everywhere; any other label out of range is an error.

    The module, its optimizer and its ``state_dict`` stay as they are; the classifier is
    saved with the callbacks' states. lightly's own benchmark modules have a classifier built
    in and need no callback.

    Args:
        num_classes: Number of classes.
        linear: Whether to train the classifier. Default: True.
        val_dataloader: Batches of labelled images to be classified. Default: none.
        knn_dataloader: Batches of the images that are the neighbours, usually the training
            images in the validation transform. Default: no kNN.
        every_n_epochs: Epochs between evaluations. Default: 1.
        optimizer: Called with the parameters. Default: AdamW, learning rate 1e-3.
        knn_k: Number of neighbours, at most all. Default: 200.
        knn_t: Temperature of their weights. Default: 0.1.
        knn_normalize: Whether neighbours are found by the cosine, or by the Euclidean distance
            of features as they are. Default: True.
        features: ``features(module, images) -> (B, D)``. Default: the module's ``backbone``.
        token: Which feature lightly's masked vision transformer has: ``"cls"``, ``"mean"`` of
            the patches, or ``"auto"``: [CLS] if there is one. Default: ``"auto"``.
        images, labels: Where they are in a batch: a key, an index or a function of it; see
            :mod:`mim_plugins.lightly.batch`. Default: first and second of a list or tuple,
            ``image`` and ``label`` and their like of a dict.

    Raises:
        TypeError, ValueError: If an argument is out of range; when they are used, if labels
            are missing, not one integer per image, or out of range.
    """

    prefix = "probe"

    def __init__(
        self,
        num_classes: int,
        *,
        linear: bool = True,
        val_dataloader: DataLoader | None = None,
        knn_dataloader: DataLoader | None = None,
        every_n_epochs: int = 1,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        knn_k: int = 200,
        knn_t: float = 0.1,
        knn_normalize: bool = True,
        features: Features | None = None,
        token: str = "auto",
        images: Getter | None = None,
        labels: Getter | None = None,
    ) -> None:
        super().__init__("online_probe", every_n_epochs)
        for name, loader in (
            ("val_dataloader", val_dataloader),
            ("knn_dataloader", knn_dataloader),
        ):
            if loader is not None and not isinstance(loader, DataLoader):
                raise TypeError(f"{name} must be a DataLoader or None, got {loader!r}")
        if knn_dataloader is not None and val_dataloader is None:
            raise ValueError("val_dataloader must be given with knn_dataloader")
        if not linear and knn_dataloader is None:
            raise ValueError(
                f"linear must be True without knn_dataloader, got {linear}: nothing would be done"
            )
        self.probe = FeatureProbe(
            check_int("num_classes", num_classes),
            linear=linear,
            optimizer=check_callable("optimizer", optimizer),
            knn_k=knn_k,
            knn_t=knn_t,
            knn_normalize=knn_normalize,
        )
        self.val_dataloader = val_dataloader
        self.knn_dataloader = knn_dataloader
        self.features = check_callable("features", features)
        self.token = check_choice("token", token, TOKENS)
        self.get_images = check_getter("images", images)
        self.get_labels = check_getter("labels", labels)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to classify."""
        for name in ("val_dataloader", "knn_dataloader"):
            data: Any = getattr(getattr(self, name), "dataset", None)
            if hasattr(data, "__len__") and not len(data):
                raise ValueError(f"{name} must have at least one image, got none")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Train the classifier on the step's images."""
        if not self.probe.linear:
            return
        labels = labels_of(batch, self.get_labels)
        features = self._encode(trainer, pl_module, batch)
        if trainer.world_size > 1:
            every: Any = pl_module.all_gather((features, labels))
            features, labels = (each.flatten(0, 1) for each in every)
        for name, value in self.probe.step(features, labels).items():
            pl_module.log(f"train/{name}", value, batch_size=len(labels))

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Top-1 accuracies in % of the validation images."""
        if self.val_dataloader is None:
            return {}
        with preserve_rng():
            features, labels = self._encode_all(trainer, pl_module, self.val_dataloader)
            bank = self.knn_dataloader and self._encode_all(trainer, pl_module, self.knn_dataloader)
            return self.probe.evaluate(features, labels, bank or None)

    def _encode(self, trainer: Trainer, module: LightningModule, batch: Any) -> Tensor:
        images = images_of(batch, self.get_images)
        return extract_features(trainer, module, images, self.features, self.token)

    def _encode_all(
        self, trainer: Trainer, module: LightningModule, loader: DataLoader
    ) -> tuple[Tensor, Tensor]:
        features, labels = [], []
        for batch in loader:
            labels.append(labels_of(batch, self.get_labels).to(module.device))
            features.append(self._encode(trainer, module, batch))
        return torch.cat(features), torch.cat(labels)

    def state_dict(self) -> dict[str, Any]:
        """The classifier and its optimizer, beside the module, and what was measured."""
        return {**(self.probe.state() or {}), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with a saved classifier, as far as it fits this one."""
        super().load_state_dict(state_dict)
        self.probe.load({key: state_dict[key] for key in state_dict if key != "history"})
