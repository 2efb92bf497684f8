"""Lightning callbacks that watch self-supervised training and leave it as it is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightly.utils.benchmarking import OnlineLinearClassifier
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..._check import check_bool, check_callable, check_int, check_positive
from ..._observe import observing, preserve_rng
from ..._pool import pool
from ...analysis.knn import knn_top1
from ...analysis.linear_probe import adamw
from ...analysis.spectrum_plot import plot_history, record_spectrum

Features = Callable[[LightningModule, Tensor], Tensor]


def first_view(batch: Any) -> Tensor:
    """Images ``(B, C, H, W)`` of a batch ``(images or views, labels, ...)``."""
    images = batch[0] if isinstance(batch, list | tuple) else batch
    return images if isinstance(images, Tensor) else images[0]


def extract_features(
    trainer: Trainer, module: LightningModule, images: Tensor, features: Features | None = None
) -> Tensor:
    """One feature per image, in evaluation mode, without gradients or traces.

    Args:
        trainer: Gives the precision.
        module: Its ``backbone`` is called, or the module itself if it has none.
        images: ``(B, C, H, W)``.
        features: Called instead as ``features(module, images)``.

    Returns:
        ``(B, D)`` float32; feature maps are averaged, of tokens the first is taken.
    """
    with observing(module), trainer.precision_plugin.forward_context():
        if features is not None:
            output = features(module, images)
        elif isinstance(getattr(module, "backbone", None), nn.Module):
            output = module.backbone(images)
        else:
            output = module(images)
        return pool(output)


class _Watch(Callback):
    """A callback that acts every so many epochs."""

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = check_int("every_n_epochs", every_n_epochs)

    def _is_due(self, trainer: Trainer) -> bool:
        done = trainer.current_epoch + 1
        return done % self.every_n_epochs == 0 or done == trainer.max_epochs


class EffectiveRank(_Watch):
    """Shows whether features collapse: their effective rank and singular spectrum.

    Before training and every ``every_n_epochs`` epochs the features of the same images are
    taken; the rank is logged as ``effective_rank``, the spectra are lines of
    ``singular_spectrum.jsonl`` and the figure ``singular_spectrum.png`` in the trainer's
    log directory. Only the first rank computes.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022, figures 1b and 1c, appendix B.1.

    Args:
        every_n_epochs: Default: 1.
        num_images: Number of images, at least 2. Default: 100, the paper's.
        dataset: Whose items ``(image or views, ...)`` are taken, evenly spaced. Default: the
            training data set.
        features: ``features(module, images) -> (B, D)``. Default: the module's ``backbone``.
        batch_size: Images encoded at once. Default: 50.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> Trainer(callbacks=[EffectiveRank()]).fit(model, loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_images: int = 100,
        dataset: Any = None,
        features: Features | None = None,
        batch_size: int = 50,
    ) -> None:
        super().__init__(every_n_epochs)
        if dataset is not None:
            _check_dataset(dataset)
        check_callable("features", features)
        self.num_images = check_int("num_images", num_images, 2)
        self.dataset = dataset
        self.features = features
        self.batch_size = check_int("batch_size", batch_size)
        self.images: Tensor | None = None
        self.history: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pick the images; measure the untrained features."""
        if not trainer.is_global_zero:
            return
        dataset = self.dataset
        if dataset is None:
            dataset = getattr(trainer.train_dataloader, "dataset", None)
            _check_dataset(dataset)
        number = min(self.num_images, len(dataset))
        picked = torch.linspace(0, len(dataset) - 1, number).long().tolist()
        with preserve_rng(seed=0):
            items = [dataset[index] for index in picked]
            if not isinstance(items[0], (Tensor, list, tuple)):
                raise ValueError(f"dataset must hold images or (images, ...), got {dataset!r}")
            self.images = torch.stack([first_view(item) for item in items])
        if trainer.global_step == 0:
            self.measure(trainer, pl_module, epoch=0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, every ``every_n_epochs`` epochs."""
        if trainer.is_global_zero and self._is_due(trainer):
            rank = self.measure(trainer, pl_module, epoch=trainer.current_epoch + 1)
            pl_module.log("effective_rank", rank, rank_zero_only=True)

    def measure(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> float:
        """Take the features, write their spectrum and return their rank."""
        assert self.images is not None
        features = torch.cat(
            [
                extract_features(trainer, pl_module, images.to(pl_module.device), self.features)
                for images in self.images.split(self.batch_size)
            ]
        )
        folder = _folder(trainer)
        rank = record_spectrum(self.history, features, epoch, trainer.global_step, folder)
        figure = plot_history(self.history)
        figure.savefig(folder / "singular_spectrum.png", dpi=100)
        del figure
        gc.collect()  # a figure is megabytes of reference cycles, which Python leaves for long
        return rank

    def state_dict(self) -> dict[str, Any]:
        """What was measured, saved in checkpoints."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what was measured."""
        self.history = list(state_dict["history"])


class OnlineProbe(_Watch):
    """lightly's online linear classifier and kNN beside a module that has neither.

    The classifier, lightly's ``OnlineLinearClassifier``, takes one step after every training
    step on the unmasked features of the step's images (the first view of ``batch[0]``, labels
    ``batch[1]``), joined over all ranks. It logs ``train_online_cls_loss`` and ``_top1``;
    with ``val_dataloader`` every ``every_n_epochs`` epochs ``val_online_cls_top1`` and, by
    lightly's ``knn_predict``, ``val_knn_top1``, all in [0, 1].

    The module, its optimizer and its ``state_dict`` stay as they are; the classifier is
    saved with the callbacks' states. lightly's own benchmark modules have such a classifier
    built in and need no callback.

    Args:
        num_classes: Number of classes.
        linear: Whether to train the classifier. Default: True.
        val_dataloader: Batches ``(images, labels, ...)`` to be classified. Default: none.
        knn_dataloader: Batches of the images that are the neighbours, usually the training
            images in the validation transform. Default: no kNN.
        every_n_epochs: Epochs between evaluations. Default: 1.
        optimizer: Called with the parameters. Default: AdamW, learning rate 1e-3.
        knn_k: Number of neighbours, at most all. Default: 200.
        knn_t: Temperature of their weights. Default: 0.1.
        features: ``features(module, images) -> (B, D)``. Default: the module's ``backbone``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        linear: bool = True,
        val_dataloader: DataLoader | None = None,
        knn_dataloader: DataLoader | None = None,
        every_n_epochs: int = 1,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        knn_k: int = 200,
        knn_t: float = 0.1,
        features: Features | None = None,
    ) -> None:
        super().__init__(every_n_epochs)
        check_int("num_classes", num_classes)
        check_bool("linear", linear)
        check_callable("optimizer", optimizer)
        check_callable("features", features)
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
        check_int("knn_k", knn_k)
        check_positive("knn_t", knn_t)
        self.num_classes = num_classes
        self.linear = linear
        self.val_dataloader = val_dataloader
        self.knn_dataloader = knn_dataloader
        self.make_optimizer = optimizer or adamw
        self.knn_k, self.knn_t = knn_k, knn_t
        self.features = features
        self.classifier: OnlineLinearClassifier | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._resumed: dict[str, Any] = {}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Train the classifier on the step's images."""
        if not self.linear:
            return
        features = extract_features(trainer, pl_module, first_view(batch), self.features)
        labels = batch[1]
        if trainer.world_size > 1:
            features = pl_module.all_gather(features).flatten(0, 1)
            labels = pl_module.all_gather(labels).flatten(0, 1)
        if self.classifier is None or not labels.is_cuda:  # a look at labels waits for the GPU
            self._check_labels(labels)
        if self.classifier is None:
            self._build(features)
        assert self.classifier is not None
        assert self.optimizer is not None
        self.classifier.train()
        with torch.enable_grad():
            loss, log = self.classifier.training_step((features, labels), batch_idx)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        log = {name: value.detach() for name, value in log.items()}
        pl_module.log_dict(log, batch_size=len(labels))

    def _check_labels(self, labels: Tensor) -> None:
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes} does not fit labels from {labels.min()} to "
                f"{labels.max()}"
            )

    def _build(self, features: Tensor) -> None:
        with preserve_rng(seed=0):
            self.classifier = OnlineLinearClassifier(
                feature_dim=features.shape[1], num_classes=self.num_classes, topk=(1,)
            ).to(features.device)
        self.optimizer = self.make_optimizer(self.classifier.parameters())
        if self._resumed:
            self.classifier.load_state_dict(self._resumed["classifier"])
            self.optimizer.load_state_dict(self._resumed["optimizer"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate on the first rank, every ``every_n_epochs`` epochs."""
        if trainer.is_global_zero and self._is_due(trainer):
            for name, value in self.evaluate(trainer, pl_module).items():
                pl_module.log(name, value, rank_zero_only=True)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Top-1 accuracies in [0, 1] of the validation images."""
        if self.val_dataloader is None:
            return {}
        results = {}
        with preserve_rng(), torch.no_grad():
            features, labels = self._encode(trainer, pl_module, self.val_dataloader)
            if self.classifier is not None:
                self.classifier.eval()
                log = self.classifier.validation_step((features, labels), 0)[1]
                results["val_online_cls_top1"] = float(log["val_online_cls_top1"])
            if self.knn_dataloader is not None:
                bank = self._encode(trainer, pl_module, self.knn_dataloader)
                results["val_knn_top1"] = knn_top1(
                    features, labels, *bank, self.num_classes, self.knn_k, self.knn_t
                )
        return results

    def _encode(
        self, trainer: Trainer, module: LightningModule, loader: DataLoader
    ) -> tuple[Tensor, Tensor]:
        features, labels = [], []
        for batch in loader:
            images = first_view(batch).to(module.device)
            features.append(extract_features(trainer, module, images, self.features))
            labels.append(batch[1].to(module.device))
        return torch.cat(features), torch.cat(labels)

    def state_dict(self) -> dict[str, Any]:
        """The classifier and its optimizer, saved in checkpoints beside the module."""
        if self.classifier is None or self.optimizer is None:
            return dict(self._resumed)
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with a saved classifier."""
        self._resumed = state_dict


def _check_dataset(dataset: Any) -> None:
    """Raise TypeError or ValueError unless ``dataset`` has at least 2 items to index."""
    if isinstance(dataset, (str, bytes)) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TypeError(
            "EffectiveRank needs a data set that can be indexed, give it one: dataset=..., "
            f"got {dataset!r}"
        )
    if len(dataset) < 2:
        raise ValueError(f"dataset must have at least 2 images, got {len(dataset)}: {dataset!r}")


def _folder(trainer: Trainer) -> Path:
    """The trainer's log directory, made if need be.

    ``trainer.log_dir`` is the same, but waits for all ranks, and only the first one writes.
    """
    logger = trainer.logger
    found = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
    folder = Path(found or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
