"""Figures of the features over training, such as their effective rank."""

from __future__ import annotations

from numbers import Number
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import default_collate

from ..._check import check_callable, check_choice, check_int
from ..._observe import preserve_rng
from ..._pool import TOKENS
from ...analysis.monitors import check_views, evenly_spaced, measure, monitors_of, views_of
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
        self.monitors = monitors_of(monitors)
        if dataset is not None:
            self._check_dataset(dataset)
        self.num_images = check_int("num_images", num_images, 2)
        self.dataset = dataset
        self.get_images = check_getter("images", images)
        self.features = check_callable("features", features)
        self.token = check_choice("token", token, TOKENS)
        self.batch_size = check_int("batch_size", batch_size)
        self.images: Tensor | None = None

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
            loader = trainer.train_dataloader
            dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
            self._check_dataset(dataset)
        views = views_of(self.monitors)
        with preserve_rng(seed=0):
            batch = collate(evenly_spaced(dataset, self.num_images, views))
        self.images = images_of(batch, self.get_images).unflatten(0, (-1, views))
        check_views(self.images, self.monitors)
        if trainer.global_step == 0:
            self.measure(trainer, pl_module, epoch=0)

    def figures(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the monitors say of the features."""
        assert self.images is not None

        def encode(images: Tensor) -> Tensor:
            images = images.to(pl_module.device)
            return extract_features(trainer, pl_module, images, self.features, self.token)

        return measure(self.monitors, self.images, encode, self.batch_size)

    def _check_dataset(self, dataset: Any) -> None:
        """Raise TypeError or ValueError unless ``dataset`` has at least 2 items to index."""
        if isinstance(dataset, (str, bytes)) or not (
            hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        ):
            raise TypeError(
                f"{type(self).__name__} needs a data set that can be indexed, give it one: "
                f"dataset=..., got {dataset!r}"
            )
        if len(dataset) < 2:
            raise ValueError(
                f"dataset must have at least 2 images, got {len(dataset)}: {dataset!r}"
            )
        if isinstance(dataset, (list, tuple)) and isinstance(dataset[0], Number):
            raise TypeError(f"dataset must give images, got {dataset!r}")


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
