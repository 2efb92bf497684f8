"""Monitors: one function each, from the features of images to figures, for every framework."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from .._check import check_int
from .._observe import preserve_rng

Figures = dict[str, Any]
MONITORS: dict[str, Any] = {}


def monitor(
    function: Callable[[Tensor], Any] | None = None, *, views: int | None = None
) -> Callable[..., Any]:
    """Decorator: makes a function a monitor that configs call by its name.

    Args:
        function: Called with ``(n, D)`` floating features, or with ``(n, views, D)`` if
            ``views`` is given. Returns a number, a dict of numbers by name, or a 1-D tensor:
            a curve, recorded and drawn but not logged.
        views: Randomly augmented views of each image that the function compares, at least 2,
            which becomes its attribute of this name. Default: one view, without that dimension.

    Example:
        >>> import torch
        >>> @monitor
        ... def mean_norm(features):
        ...     return features.norm(dim=1).mean()
        >>> figures_of(MONITORS["mean_norm"], torch.ones(2, 1, 4))
        {'mean_norm': 2.0}
    """
    if views is not None:
        check_int("views", views, 2)

    def register(function: Any) -> Any:
        function.views = views
        MONITORS[function.__name__] = function
        return function

    return register if function is None else register(function)


def name_of(monitor: Callable[[Tensor], Any]) -> str:
    """Under which a number of the monitor is published."""
    return getattr(monitor, "__name__", repr(monitor))


def figures_of(monitor: Callable[[Tensor], Any], features: Tensor) -> Figures:
    """Figures of features ``(n, V, D)`` of at least its ``views`` views; NaN if those are NaN."""
    views = getattr(monitor, "views", None)
    given = features[:, 0] if views is None else features[:, :views]
    try:
        value = monitor(given)
    except Exception:
        if given.isfinite().all():
            raise
        value = math.nan  # a run that has diverged goes on, and says so
    if isinstance(value, Tensor):
        value = value.tolist()  # a number or a curve
    return dict(value) if isinstance(value, dict) else {name_of(monitor): value}


class FeatureWatch:
    """Figures of the features of the same images, again and again.

    Args:
        monitors: Names in ``MONITORS``, or functions that need not be registered.
        num_images: How many, at least 2; fewer if the data set has fewer.
        batch_size: Images encoded at once.

    Attributes:
        images: ``(n, V, C, H, W)`` in as many views as the monitors need, once they are taken.

    Raises:
        TypeError: If ``monitors`` is no list of names and functions, or a number no int.
        ValueError: If it is empty, a name is unknown or a number out of range.
    """

    def __init__(self, monitors: Any, num_images: int, batch_size: int) -> None:
        if not isinstance(monitors, (list, tuple)) or not all(
            isinstance(each, str) or callable(each) for each in monitors
        ):
            raise TypeError(f"monitors must be a list of names and functions, got {monitors!r}")
        unknown = [each for each in monitors if isinstance(each, str) and each not in MONITORS]
        if unknown or not monitors:
            raise ValueError(
                f"monitors must not be empty, and functions or of {sorted(MONITORS)}, got "
                f"{unknown or monitors}"
            )
        self.monitors = [MONITORS[m] if isinstance(m, str) else m for m in monitors]
        self.num_images = check_int("num_images", num_images, 2)
        self.batch_size = check_int("batch_size", batch_size)
        self.images: Tensor | None = None

    def take(self, dataset: Any, collate: Callable[[list], Tensor]) -> None:
        """Pick evenly spaced images of a data set, the same whenever that is done.

        Args:
            dataset: Each image is taken from it as often as the monitors need views.
            collate: Makes a batch ``(B, C, H, W)`` of items.

        Raises:
            TypeError: If the data set cannot be indexed, as iterable ones.
            ValueError: If it has fewer than 2 images, or views that do not differ.
        """
        check_dataset(dataset)
        views = max(getattr(each, "views", None) or 1 for each in self.monitors)
        number = min(self.num_images, len(dataset))
        picked = torch.linspace(0, len(dataset) - 1, number).long().tolist()
        with preserve_rng(seed=0):
            images = collate([dataset[index] for index in picked for _ in range(views)])
        self.images = images.unflatten(0, (-1, views))
        if views > 1 and bool((self.images[:, 1:] == self.images[:, :1]).all()):
            names = [name_of(each) for each in self.monitors if getattr(each, "views", None)]
            raise ValueError(
                f"{', '.join(names)} must see random views of each image, but the data set gives "
                "the same every time: give one with random augmentation"
            )

    def measure(self, encode: Callable[[Tensor], Tensor]) -> Figures:
        """What the monitors say; ``encode`` gives features ``(B, D)`` of images ``(B, ...)``."""
        assert self.images is not None
        batches = self.images.flatten(0, 1).split(self.batch_size)
        features = torch.cat([encode(batch) for batch in batches])
        features = features.unflatten(0, self.images.shape[:2])
        return {
            name: value
            for each in self.monitors
            for name, value in figures_of(each, features).items()
        }


def check_dataset(dataset: Any) -> None:
    """Raise TypeError or ValueError unless ``dataset`` has at least 2 items to index."""
    if isinstance(dataset, (str, bytes)) or not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise TypeError(
            "dataset must be one that can be indexed, so that the same images are looked at: give "
            f"FeatureMonitor a dataset, FeatureMonitorHook a dataloader of images, got {dataset!r}"
        )
    if len(dataset) < 2:
        raise ValueError(f"dataset must have at least 2 images, got {len(dataset)}: {dataset!r}")
    if isinstance(dataset, (list, tuple)) and isinstance(dataset[0], Number):
        raise TypeError(f"dataset must give images, got {dataset!r}")
