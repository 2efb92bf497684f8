"""How good are the features, while they are being trained? Linear probe and kNN."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.dist import all_gather
from mmengine.hooks import Hook
from mmengine.optim import OPTIMIZERS
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from ..._check import check_bool, check_choice, check_dict, check_int, check_positive
from ..._observe import preserve_rng
from ..._pool import TOKENS
from ...analysis.linear_probe import LinearProbe
from .features import (
    StepCapture,
    build_loader,
    check_dataloader,
    extract_features,
    first_view,
    preprocess,
    unwrap,
)
from .hook import Interval

STATE = "online_probe"


@HOOKS.register_module()
class OnlineProbeHook(Hook):
    """A linear classifier trained beside the model, and kNN accuracy, both on detached features.

    *Linear*: after every ``linear_interval``-th step the step's images (the first view) are
    encoded once more, unmasked, in evaluation mode, and a
    :class:`~mim_plugins.analysis.linear_probe.LinearProbe` takes one step on the features of
    all ranks. Logged as ``train/probe_loss`` and ``train/probe_top1`` (of the batch, before
    the probe's step). The masked features of the step itself would be free, but they are not
    those that are used downstream, and some algorithms have no such thing per image.

    *kNN*: weighted kNN (Wu et al., CVPR 2018, the metric of MixMask) of the validation images
    among the training images, by lightly's ``knn_predict``.

    With ``val_dataloader``, every ``interval`` epochs ``probe/linear_top1`` and
    ``probe/knn_top1`` (%) go to the log, the message hub and the visualizer.

    Training stays bit for bit what it is without the hook. The probe is not part of the
    model; checkpoints hold it under ``online_probe``, and a resumed run continues it.

    U-MAE, appendix B.5 and table 4; MixMask, figure 5.

    Args:
        num_classes (int, optional): Defaults to None: the number of classes in the training
            data set's meta information.
        linear (bool): Whether to train the linear probe. Defaults to True.
        knn (bool): Whether to evaluate kNN; needs ``val_dataloader``. Defaults to True if
            there is one.
        val_dataloader (dict, optional): Data loader config, with ``dataset`` and
            ``batch_size``, of labelled images in a test pipeline that ends with
            ``PackInputs``. Defaults to None: only the training batches are classified.
        bank_dataloader (dict, optional): As ``val_dataloader``, of the images that are the
            neighbours. Defaults to None: the training data set in the pipeline of
            ``val_dataloader``.
        interval (int): Epochs, or iterations, between evaluations. Defaults to 1.
        by_epoch (bool): Whether ``interval`` counts epochs. Defaults to True.
        linear_interval (int): Steps of training per step of the probe. Defaults to 1.
        optimizer (dict): Of the probe. Defaults to AdamW, learning rate 1e-3.
        knn_k (int): Number of neighbours, at most all. Defaults to 200.
        knn_t (float): Temperature of their weights. Defaults to 0.1.
        token (str): Which feature a vision transformer has: ``'cls'``, ``'mean'`` of the
            patches, or ``'auto'``: [CLS] if there is one. Defaults to ``'auto'``.
        log_interval (int): Steps of the probe per log entry. Defaults to 10.

    Raises:
        ValueError: If an argument is out of range, or labels are missing.
        ImportError: If kNN is asked for and lightly is not installed.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        linear: bool = True,
        knn: bool | None = None,
        val_dataloader: dict | None = None,
        bank_dataloader: dict | None = None,
        interval: int = 1,
        by_epoch: bool = True,
        linear_interval: int = 1,
        optimizer: dict | None = None,
        knn_k: int = 200,
        knn_t: float = 0.1,
        token: str = "auto",
        log_interval: int = 10,
    ) -> None:
        self.due = Interval(interval, by_epoch)
        check_bool("linear", linear)
        knn = val_dataloader is not None if knn is None else check_bool("knn", knn)
        for name, loader in (
            ("val_dataloader", val_dataloader),
            ("bank_dataloader", bank_dataloader),
        ):
            if loader is not None:
                check_dataloader(name, loader)
        optimizer = check_dict("optimizer", optimizer)
        if not (linear or knn):
            raise ValueError(
                f"linear or knn must be True, got linear={linear} and knn={knn}: nothing to do"
            )
        if knn and val_dataloader is None:
            raise ValueError("val_dataloader must be given for knn=True")
        if num_classes is not None:
            check_int("num_classes", num_classes)
        for name, value in (
            ("linear_interval", linear_interval),
            ("knn_k", knn_k),
            ("log_interval", log_interval),
        ):
            check_int(name, value)
        check_positive("knn_t", knn_t)
        check_choice("token", token, TOKENS)
        if knn:
            try:
                from ...analysis.knn import knn_top1  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    f"knn=True needs lightly's kNN ({error}): pip install 'mim_plugins[lightly]'"
                ) from error
        self.num_classes = num_classes
        self.linear = linear
        self.knn = knn
        self.val_dataloader = val_dataloader
        self.bank_dataloader = bank_dataloader
        self.linear_interval = linear_interval
        self.optimizer = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.0, **optimizer}
        if "type" in optimizer:
            self.optimizer = optimizer
        try:  # now, rather than in the first step
            OPTIMIZERS.build({**self.optimizer, "params": [torch.nn.Parameter(torch.zeros(1))]})
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"optimizer must be a config of an optimizer, got {optimizer!r}: {error}"
            ) from error
        self.knn_k, self.knn_t = knn_k, knn_t
        self.token = token
        self.log_interval = log_interval
        self.probe: LinearProbe | None = None
        self._resumed: dict[str, Any] | None = None
        self._step: StepCapture | None = None
        self._results: list[Tensor] = []
        self._loaders: dict[str, Any] = {}

    # -- linear probe: beside every step ---------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Find the number of classes and build the data loaders, before anything is trained."""
        meta = getattr(runner.train_dataloader.dataset, "metainfo", None) or {}
        classes = len(meta.get("classes") or ())
        if self.num_classes is None:
            if not classes:
                raise ValueError("num_classes must be given: the training data set names none")
            self.num_classes = classes
        if self.num_classes < classes:
            raise ValueError(
                f"num_classes={self.num_classes} is less than the {classes} of the training data"
            )
        if self.val_dataloader is None:
            return
        with preserve_rng():
            self._loaders["val"] = build_loader(runner, self.val_dataloader)
            if self.knn:
                bank = self.bank_dataloader
                if bank is None:
                    bank = _training_images(runner.cfg.train_dataloader, self.val_dataloader)
                self._loaders["bank"] = build_loader(runner, bank)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Have the step's images kept, if the probe takes part in it."""
        if self.linear and (runner.iter + 1) % self.linear_interval == 0:
            self._step = StepCapture(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Train the probe on the step's images, and evaluate if it is time."""
        if self._step is not None:
            data = self._step.release()
            self._step = None
            self._train_probe(runner, data)
            last = batch_idx == len(runner.train_dataloader) - 1 or runner.iter == (
                runner.max_iters - 1
            )
            if len(self._results) >= self.log_interval or last:
                loss, top1 = torch.stack(self._results).mean(dim=0).tolist()
                self._results.clear()
                runner.message_hub.update_scalar("train/probe_loss", loss)
                runner.message_hub.update_scalar("train/probe_top1", 100 * top1)
        if self.due.after_iter(runner):
            self.evaluate(runner, step=runner.iter + 1)

    def _train_probe(self, runner: Runner, data: dict) -> None:
        images = first_view(data["inputs"])
        labels = _labels(data.get("data_samples")).to(images.device)
        features = extract_features(runner, images, self.token)
        if self.probe is None:
            self._build_probe(runner, features, labels)
        features = torch.cat(all_gather(features))
        labels = torch.cat(all_gather(labels))
        assert self.probe is not None
        self._results.append(torch.stack(self.probe.step(features, labels)))

    def _build_probe(self, runner: Runner, features: Tensor, labels: Tensor) -> None:
        assert self.num_classes is not None
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes} does not fit labels from {labels.min()} to "
                f"{labels.max()}"
            )
        self.probe = LinearProbe(features.shape[1], self.num_classes).to(features.device)
        parameters = list(self.probe.classifier.parameters())
        self.probe.optimizer = OPTIMIZERS.build({**self.optimizer, "params": parameters})
        if self._resumed is not None:
            saved = self._resumed["probe"]["classifier.weight"].shape
            if saved == self.probe.classifier.weight.shape:
                self.probe.load_training_state(self._resumed)
            else:
                runner.logger.log(
                    logging.WARNING,
                    f"the checkpoint's linear probe has {tuple(saved)} weights, this one "
                    f"{tuple(self.probe.classifier.weight.shape)}: it starts anew",
                )
            self._resumed = None

    # -- evaluation ------------------------------------------------------------------------

    def after_train_epoch(self, runner: Runner) -> None:
        """Evaluate, every ``interval`` epochs."""
        if self.due.after_epoch(runner):
            self.evaluate(runner, step=runner.epoch + 1)

    def evaluate(self, runner: Runner, step: int) -> dict[str, float]:
        """Top-1 accuracies in % of the validation images, logged and returned."""
        if self.val_dataloader is None:
            return {}
        results = {}
        with preserve_rng():
            features, labels = self._encode(runner, self._loaders["val"])
            if self.probe is not None:
                results["probe/linear_top1"] = 100 * self.probe.top1(features, labels).item()
            if self.knn:
                from ...analysis.knn import knn_top1

                bank, bank_labels = self._encode(runner, self._loaders["bank"])
                top1 = knn_top1(
                    features, labels, bank, bank_labels, self.num_classes, self.knn_k, self.knn_t
                )
                results["probe/knn_top1"] = 100 * top1
        for name, value in results.items():
            runner.message_hub.update_scalar(name, value)
        if results:
            runner.visualizer.add_scalars(results, step=step)
            listed = ", ".join(f"{name} {value:.2f}" for name, value in results.items())
            runner.logger.info(f"{self.due.unit} {step}: {listed}")
        return results

    def _encode(self, runner: Runner, loader: Iterable) -> tuple[Tensor, Tensor]:
        """Features ``(n, D)`` and labels ``(n,)`` of a whole data set, gathered from all ranks."""
        features, labels = [], []
        for batch in loader:
            images, samples = preprocess(unwrap(runner.model), batch)
            features.append(extract_features(runner, images, self.token))
            labels.append(_labels(samples).to(images.device))
        number = len(loader.dataset)
        return tuple(_gather(torch.cat(each), number) for each in (features, labels))

    # -- checkpoints -----------------------------------------------------------------------

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the probe and its optimizer, beside the model."""
        if self.probe is not None:
            checkpoint[STATE] = self.probe.training_state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Continue, when resuming, with the probe of the checkpoint."""
        if runner._resume:
            self._resumed = checkpoint.get(STATE)


def _training_images(train_dataloader: Any, val_dataloader: dict) -> dict:
    """The training data set in the pipeline of the validation data set."""
    bank = copy.deepcopy(dict(val_dataloader))
    try:
        dataset = copy.deepcopy(train_dataloader["dataset"])
        if "pipeline" not in dataset:
            raise KeyError("pipeline")
        dataset["pipeline"] = bank["dataset"]["pipeline"]
    except (TypeError, KeyError) as error:
        raise ValueError(
            "bank_dataloader must be given: the training or validation data set is no config "
            "with a pipeline of its own"
        ) from error
    return {**bank, "dataset": dataset}


def _labels(samples: Any) -> Tensor:
    """``(B,)`` long."""
    if not samples or any("gt_label" not in sample for sample in samples):
        raise ValueError(
            "OnlineProbeHook needs labels: every data sample must have a gt_label, which "
            "PackInputs takes over from a labelled data set"
        )
    labels = torch.stack([sample.gt_label.view(-1) for sample in samples])
    if labels.shape[1] != 1:
        raise ValueError(f"OnlineProbeHook needs one label per image, got {labels.shape[1]}")
    return labels[:, 0].long()


def _gather(shard: Tensor, number: int) -> Tensor:
    """Undo ``DefaultSampler``: rank r of w has samples r, r + w, ..., filled up to equal size."""
    return torch.stack(all_gather(shard.contiguous()), dim=1).flatten(0, 1)[:number]
