"""Monitors: one function each, from the features of images to figures, for every framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._check import check_int
from .spectrum import effective_rank, singular_spectrum

Figures = dict[str, Any]


@dataclass(frozen=True)
class Monitor:
    """What to compute of features, under which name, of how many views of each image.

    Attributes:
        name: Under which a number is published.
        function: Called with ``(n, D)`` floating features, or with ``(n, views, D)`` if
            ``views`` is given. Returns a number, a dict of numbers by name, or a 1-D tensor:
            a curve, recorded and drawn but not logged.
        views: Randomly augmented views of each image that the function compares; None: one
            view, without that dimension.
    """

    name: str
    function: Callable[[Tensor], Any]
    views: int | None = None

    def __call__(self, features: Tensor) -> Figures:
        """Figures of features ``(n, V, D)`` of at least ``views`` views; NaN if those are NaN."""
        given = features[:, 0] if self.views is None else features[:, : self.views]
        try:
            value = self.function(given)
        except Exception:
            if given.isfinite().all():
                raise
            value = math.nan  # a run that has diverged goes on, and says so
        if isinstance(value, Tensor):
            value = value.tolist()  # a number or a curve
        return dict(value) if isinstance(value, dict) else {self.name: value}


MONITORS: dict[str, Monitor] = {}


def monitor(
    function: Callable[[Tensor], Any] | None = None, *, views: int | None = None
) -> Callable[..., Any]:
    """Decorator: makes a function a monitor that configs call by its name.

    Args:
        function: See :class:`Monitor`.
        views: See :class:`Monitor`; at least 2. Default: None.

    Example:
        >>> import torch
        >>> @monitor
        ... def mean_norm(features):
        ...     return features.norm(dim=1).mean()
        >>> measure = monitors_of(["mean_norm"])[0]
        >>> measure(torch.ones(2, 1, 4))
        {'mean_norm': 2.0}
    """
    if views is not None:
        check_int("views", views, 2)

    def register(function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        MONITORS[function.__name__] = Monitor(function.__name__, function, views)
        return function

    return register if function is None else register(function)


def monitors_of(given: Any) -> list[Monitor]:
    """Monitors by name, or functions of features that need not be registered.

    Raises:
        TypeError: If ``given`` is no list of names and functions.
        ValueError: If it is empty or a name is unknown.
    """
    if not isinstance(given, (list, tuple)) or not all(
        isinstance(m, str) or callable(m) for m in given
    ):
        raise TypeError(f"monitors must be a list of names and functions, got {given!r}")
    if not given:
        raise ValueError(f"monitors must not be empty, got {given!r}; there are {sorted(MONITORS)}")
    unknown = [each for each in given if isinstance(each, str) and each not in MONITORS]
    if unknown:
        raise ValueError(f"monitors must be functions or of {sorted(MONITORS)}, got {unknown}")
    registered = {known.function: known for known in MONITORS.values()}
    return [
        MONITORS[each]
        if isinstance(each, str)
        else registered.get(each, Monitor(getattr(each, "__name__", repr(each)), each))
        for each in given
    ]


def views_of(monitors: Sequence[Monitor]) -> int:
    """Views of each image that the monitors need, 1 if one will do."""
    return max(each.views or 1 for each in monitors)


def evenly_spaced(dataset: Any, number: int, views: int = 1) -> list:
    """At most ``number`` items of a data set, each taken ``views`` times in a row."""
    picked = torch.linspace(0, len(dataset) - 1, min(number, len(dataset))).long().tolist()
    return [dataset[index] for index in picked for _ in range(views)]


def measure(
    monitors: Sequence[Monitor],
    images: Tensor,
    encode: Callable[[Tensor], Tensor],
    batch_size: int,
) -> Figures:
    """Figures of images ``(n, V, C, H, W)``; ``encode`` gets at most ``batch_size`` at once."""
    batches = images.flatten(0, 1).split(batch_size)
    features = torch.cat([encode(batch) for batch in batches]).unflatten(0, images.shape[:2])
    return {name: value for each in monitors for name, value in each(features).items()}


def check_views(images: Tensor, monitors: Sequence[Monitor]) -> None:
    """Raise ValueError unless ``images (n, V, ...)`` are n >= 2, in views that differ if V > 1."""
    if len(images) < 2:
        raise ValueError(f"the data set must have at least 2 images, got {len(images)}")
    if images.shape[1] > 1 and bool((images[:, 1:] == images[:, :1]).all()):
        names = [each.name for each in monitors if each.views]
        raise ValueError(
            f"{', '.join(names)} must see random views of each image, but the data set gives "
            "the same every time: give one with random augmentation"
        )


for _function in (effective_rank, singular_spectrum):
    monitor(_function)
