"""Figures of the features over training, such as their effective rank."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import default_collate

from ..._check import check_callable, check_choice
from ..._pool import TOKENS
from ...analysis.monitors import FeatureWatch, check_dataset
from ..batch import Getter, check_getter, images_of
from .callback import Features, MonitorCallback, extract_features


class FeatureMonitor(MonitorCallback):
    """Publishes figures of the features of the same images, over training.

    Before training and every ``every_n_epochs`` epochs the features of ``num_images`` images
    are taken and given to every monitor. Numbers are logged as ``analysis/<monitor>``; numbers
    and curves are lines of ``<name>.jsonl`` and drawn in ``<name>.png`` in the trainer's log
    directory. Only the first rank computes. Training stays bit for bit what it is without the
    callback; where the features have become NaN or infinite the numbers are NaN.

    Args:
        monitors: Names in ``mim_plugins.analysis.MONITORS``, or functions; see
            :func:`mim_plugins.analysis.monitor`.
        every_n_epochs: Default: 1.
        num_images: Number of images, at least 2. Default: 100.
        dataset: Whose items are taken, evenly spaced. Default: the training data set.
            Monitors that compare views of an image get them by taking it several times, so
            that the data set must augment at random.
        images: Where in a batch the images are, a key, an index or a function of it; see
            :func:`mim_plugins.lightly.batch.images_of`. Default: the batch itself, its first
            entry, or its ``image``.
        features: ``features(module, images) -> (B, D)``. Default: the module's ``backbone``.
        token: Which feature lightly's masked vision transformer has: ``"cls"``, ``"mean"`` of
            the patches, or ``"auto"``: [CLS] if there is one. Default: ``"auto"``.
        batch_size: Images encoded at once. Default: 50.
        name: Of the files. Default: ``"feature_monitor"``.

    Raises:
        TypeError, ValueError: If an argument is out of range; when training starts, if the
            data set has fewer than 2 images, or not the views that a monitor needs.

    Example:
        >>> Trainer(callbacks=[FeatureMonitor(["effective_rank"])])  # doctest: +SKIP
    """

    drawn = True

    def __init__(
        self,
        monitors: list,
        *,
        every_n_epochs: int = 1,
        num_images: int = 100,
        dataset: Any = None,
        images: Getter | None = None,
        features: Features | None = None,
        token: str = "auto",
        batch_size: int = 50,
        name: str = "feature_monitor",
    ) -> None:
        super().__init__(name, every_n_epochs)
        self.watch = FeatureWatch(monitors, num_images, batch_size)
        if dataset is not None:
            check_dataset(dataset)
        self.dataset = dataset
        self.get_images = check_getter("images", images)
        self.features = check_callable("features", features)
        self.token = check_choice("token", token, TOKENS)

    @property
    def state_key(self) -> str:
        """Under which checkpoints hold the history."""
        return self._generate_state_key(name=self.history.name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pick the images; measure the untrained features."""
        if not trainer.is_global_zero:
            return
        dataset: Any = self.dataset
        collate: Any = default_collate
        if dataset is None:
            loader: Any = trainer.train_dataloader
            dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
        self.watch.take(dataset, lambda items: images_of(collate(items), self.get_images))
        if trainer.global_step == 0:
            self.measure(trainer, pl_module, epoch=0)

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the monitors say of the features."""

        def encode(images: Tensor) -> Tensor:
            return extract_features(trainer, pl_module, images, self.features, self.token)

        return self.watch.measure(encode)


class EffectiveRank(FeatureMonitor):
    """Shows whether features collapse: their effective rank and singular spectrum.

    :class:`FeatureMonitor` with these two monitors, and the name ``singular_spectrum``.

    Zhang et al., "How Mask Matters: Towards Theoretical Understandings of Masked
    Autoencoders", NeurIPS 2022, figures 1b and 1c, appendix B.1 (100 images).

    Args:
        **options: Those of :class:`FeatureMonitor`, but ``monitors`` and ``name``.

    Example:
        >>> Trainer(callbacks=[EffectiveRank()]).fit(model, loader)  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        monitors = ["effective_rank", "singular_spectrum"]
        super().__init__(monitors, name="singular_spectrum", **options)

    @property
    def state_key(self) -> str:
        """Under which checkpoints hold the history."""
        return type(self).__qualname__
