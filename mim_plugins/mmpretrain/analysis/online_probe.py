"""How good are the features, while they are being trained? Linear probe and kNN."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather
from mmengine.optim import OPTIMIZERS
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from ..._check import check_bool, check_choice, check_dict, check_int
from ..._observe import preserve_rng
from ..._pool import TOKENS
from ...analysis.online_probe import FeatureProbe
from .features import (
    StepCapture,
    build_loader,
    check_dataloader,
    extract_features,
    first_view,
    preprocess,
    unwrap,
)
from .hook import MonitorHook


@HOOKS.register_module()
class OnlineProbeHook(MonitorHook):
    """A linear classifier trained beside the model, and kNN accuracy, both on detached features.

    *Linear*: after every ``linear_interval``-th step the step's images (the first view) are
    encoded once more, unmasked, in evaluation mode, and a
    :class:`~mim_plugins.analysis.linear_probe.LinearProbe` takes one step on the features of
    all ranks. Logged as ``train/probe_loss`` and ``train/probe_top1`` (%, of the batch, before
    the probe's step). The masked features of the step itself would be free, but they are not
    those that are used downstream, and some algorithms have no such thing per image.

    *kNN*: weighted kNN (Wu et al., CVPR 2018, the metric of MixMask) of the validation images
    among the training images, see :func:`mim_plugins.analysis.knn_top1`.

    With ``val_dataloader``, every ``interval`` epochs ``probe/linear_top1`` and
    ``probe/knn_top1`` (%) go to the log, the message hub, the visualizer and
    ``vis_data/online_probe.jsonl``; :class:`mim_plugins.lightly.OnlineProbe` logs the same
    numbers. Images labelled -1 are left out everywhere; any other label out of range is an
    error.

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
        knn_normalize (bool): Whether neighbours are found by the cosine, or by the Euclidean
            distance of features as they are. Defaults to True.
        token (str): Which feature a vision transformer has: ``'cls'``, ``'mean'`` of the
            patches, or ``'auto'``: [CLS] if there is one. Defaults to ``'auto'``.
        projection (bool): Whether to take the output of the algorithm's neck in the place of the
            backbone's, as kNN in MoCo's CIFAR demo does. Defaults to False.
        masked (bool): Whether the linear probe learns from masked images, which only backbones
            of MAE draw, as in U-MAE's code. Evaluation is of whole ones. Defaults to False.
        log_interval (int): Steps of the probe per log entry. Defaults to 10.

    Raises:
        TypeError, ValueError: If an argument is out of range, or labels are missing, not one
            integer per image, or out of range.
    """

    prefix = "probe"

    def __init__(
        self,
        num_classes: int | None = None,
        *,
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
        knn_normalize: bool = True,
        token: str = "auto",
        projection: bool = False,
        masked: bool = False,
        log_interval: int = 10,
    ) -> None:
        super().__init__("online_probe", interval, by_epoch)
        knn = val_dataloader is not None if knn is None else check_bool("knn", knn)
        self.val_dataloader = check_dataloader("val_dataloader", val_dataloader)
        self.bank_dataloader = check_dataloader("bank_dataloader", bank_dataloader)
        optimizer = {
            "type": "AdamW", "lr": 1e-3, "weight_decay": 0.0, **check_dict("optimizer", optimizer)
        }  # fmt: skip
        self.probe = FeatureProbe(
            num_classes,
            linear=linear,
            optimizer=lambda parameters: OPTIMIZERS.build({**optimizer, "params": parameters}),
            knn_k=knn_k,
            knn_t=knn_t,
            knn_normalize=knn_normalize,
        )
        if not (linear or knn):
            raise ValueError(
                f"linear or knn must be True, got linear={linear} and knn={knn}: nothing to do"
            )
        if knn and val_dataloader is None:
            raise ValueError("val_dataloader must be given for knn=True")
        try:  # now, rather than in the first step
            self.probe.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"optimizer must be a config of an optimizer, got {optimizer!r}: {error}"
            ) from error
        self.knn = knn
        self.linear_interval = check_int("linear_interval", linear_interval)
        self.log_interval = check_int("log_interval", log_interval)
        self.token = check_choice("token", token, TOKENS)
        self.projection = check_bool("projection", projection)
        self.masked = check_bool("masked", masked)
        self._step: StepCapture | None = None
        self._results: list[dict[str, Tensor]] = []
        self._loaders: dict[str, Any] = {}

    # -- linear probe: beside every step ---------------------------------------------------

    def before_train(self, runner: Runner) -> None:
        """Find the number of classes and build the data loaders, before anything is trained."""
        meta = getattr(runner.train_dataloader.dataset, "metainfo", None) or {}
        classes = len(meta.get("classes") or ())
        if self.probe.num_classes is None:
            if not classes:
                raise ValueError("num_classes must be given: the training data set names none")
            self.probe.num_classes = classes
        if self.probe.num_classes < classes:
            raise ValueError(
                f"num_classes={self.probe.num_classes} is less than the {classes} of the "
                "training data"
            )
        if self.val_dataloader is None:
            return
        self._loaders["val"] = build_loader(runner, self.val_dataloader)
        if self.knn:
            bank = self.bank_dataloader
            if bank is None:
                bank = _training_images(runner.cfg.train_dataloader, self.val_dataloader)
            self._loaders["bank"] = build_loader(runner, bank)
        for name, loader in self._loaders.items():
            if not len(loader.dataset):
                raise ValueError(f"{name}_dataloader must have at least one image, got none")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Have the step's images kept, if the probe takes part in it."""
        if self.probe.linear and (runner.iter + 1) % self.linear_interval == 0:
            self._step = StepCapture(unwrap(runner.model))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Train the probe on the step's images, and evaluate if it is time."""
        if self._step is not None:
            data = self._step.release()[0]
            self._step = None
            images = first_view(data["inputs"])
            labels = _labels(data.get("data_samples")).to(images.device)
            features = extract_features(
                runner, images, self.token, projection=self.projection, masked=self.masked
            )
            result = self.probe.step(torch.cat(all_gather(features)), torch.cat(all_gather(labels)))
            if result:
                self._results.append(result)
        last = self.end_of_epoch(runner.train_dataloader, batch_idx) or self.is_last_train_iter(
            runner
        )
        if self._results and (last or len(self._results) >= self.log_interval):
            for name in self._results[0]:
                mean = torch.stack([each[name] for each in self._results]).mean().item()
                runner.message_hub.update_scalar(f"train/{name}", mean)
            self._results.clear()
        super().after_train_iter(runner, batch_idx)

    # -- evaluation ------------------------------------------------------------------------

    def figures(self, runner: Runner) -> dict[str, float]:
        """Top-1 accuracies in % of the validation images, on every rank."""
        if not self._loaders:
            return {}
        with preserve_rng():
            features, labels = self._encode(runner, self._loaders["val"])
            bank = self._encode(runner, self._loaders["bank"]) if self.knn else None
            return self.probe.evaluate(features, labels, bank)

    def _encode(self, runner: Runner, loader: Any) -> tuple[Tensor, Tensor]:
        """Features ``(n, D)`` and labels ``(n,)`` of a whole data set, gathered from all ranks."""
        features, labels = [], []
        for batch in loader:
            images, samples = preprocess(unwrap(runner.model), batch)
            features.append(
                extract_features(runner, images, self.token, projection=self.projection)
            )
            labels.append(_labels(samples).to(images.device))
        number = len(loader.dataset)
        return _gather(torch.cat(features), number), _gather(torch.cat(labels), number)

    # -- checkpoints -----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The probe and its optimizer, beside the model, and what was measured."""
        return {**(self.probe.state() or {}), "history": self.history.entries}

    def load(self, state: dict[str, Any]) -> None:
        """Continue with the probe of the checkpoint, as far as it fits this one."""
        state = dict(state)
        self.history.entries = list(state.pop("history", []))
        self.probe.load(state)


def _training_images(train_dataloader: Any, val_dataloader: dict) -> dict:
    """The training data set in the pipeline of the validation data set."""
    try:
        dataset, pipeline = train_dataloader["dataset"], val_dataloader["dataset"]["pipeline"]
        if "pipeline" not in dataset:
            raise KeyError("pipeline")
    except (TypeError, KeyError) as error:
        raise ValueError(
            "bank_dataloader must be given: the training or validation data set is no config "
            "with a pipeline of its own"
        ) from error
    return {**val_dataloader, "dataset": {**dataset, "pipeline": pipeline}}


def _labels(samples: Any) -> Tensor:
    """``(B, 1)``."""
    if not samples or any("gt_label" not in sample for sample in samples):
        raise ValueError(
            "OnlineProbeHook needs labels: every data sample must have a gt_label, which "
            "PackInputs takes over from a labelled data set"
        )
    return torch.stack([sample.gt_label.view(-1) for sample in samples])


def _gather(shard: Tensor, number: int) -> Tensor:
    """Undo ``DefaultSampler``: rank r of w has samples r, r + w, ..., filled up to equal size."""
    return torch.stack(all_gather(shard.contiguous()), dim=1).flatten(0, 1)[:number]
