"""Images and labels of a batch, in whatever shape data sets give them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

IMAGE_KEYS = ("image", "images", "img", "pixel_values", "inputs", "x")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")

Getter = str | int | Callable[[Any], Any]  # a key, an index, or a function of the batch


def check_getter(name: str, value: Any) -> Any:
    """``value`` if it is a key, an index, a function or None, else TypeError."""
    is_index = isinstance(value, (str, int)) and not isinstance(value, bool)
    if value is not None and not is_index and not callable(value):
        raise TypeError(f"{name} must be a key, an index, a function or None, got {value!r}")
    return value


def views_of(batch: Any, images: Getter | None = None) -> list[Tensor]:
    """The views ``(B, C, H, W)`` of a batch, in its order; one if it has no list of them.

    Args:
        batch: A tensor of images; a list, tuple or named tuple whose first entry are images
            or a list of their views; or a dict, with one of the keys ``image``, ``images``,
            ``img``, ``pixel_values``, ``inputs`` or ``x``.
        images: Where else the images are: a key or index of the batch, or a function that
            takes it. Default: as above.

    Raises:
        TypeError: If there are no images there.
    """
    found = _get(batch, images, IMAGE_KEYS, 0)
    views = list(found) if isinstance(found, (list, tuple)) else [found]
    if not views or not all(isinstance(view, Tensor) for view in views):
        raise TypeError(
            f"a batch must hold image tensors, got {_outline(batch)}: say where by images=, a key, "
            "an index or a function of the batch"
        )
    return views


def images_of(batch: Any, images: Getter | None = None) -> Tensor:
    """The images ``(B, C, H, W)`` of a batch, or ``(C, H, W)`` of an item; of views the first.

    See :func:`views_of`.
    """
    return views_of(batch, images)[0]


def labels_of(batch: Any, labels: Getter | None = None) -> Tensor:
    """The labels ``(B,)`` of a batch.

    Args:
        batch: A list, tuple or named tuple whose second entry are labels; or a dict, with one
            of the keys ``label``, ``labels``, ``target``, ``targets`` or ``y``.
        labels: Where else the labels are: a key or index of the batch, or a function that
            takes it. Default: as above.

    Raises:
        TypeError: If there are no labels there.
    """
    found = _get(batch, labels, LABEL_KEYS, 1)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"a batch must hold a tensor of labels, got {_outline(batch)}: say where by labels=, "
            "a key, an index or a function of the batch"
        )
    return found


def repeat_batch(batch: Any, times: int) -> Any:
    """Every tensor, and every list of file names or the like, ``times`` times in a row."""
    if isinstance(batch, Tensor):
        return batch.repeat(times, *[1] * (batch.ndim - 1)) if batch.ndim else batch
    if isinstance(batch, Mapping):
        entries = {key: repeat_batch(part, times) for key, part in batch.items()}
        if isinstance(batch, defaultdict):
            return defaultdict(batch.default_factory, entries)
        return type(batch)(entries)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [field.name for field in dataclasses.fields(batch) if field.init]
        changes = {name: repeat_batch(getattr(batch, name), times) for name in fields}
        return dataclasses.replace(batch, **changes)
    if isinstance(batch, (list, tuple)):
        if not any(isinstance(part, (Tensor, Mapping, list, tuple)) for part in batch):
            return type(batch)(batch * times)
        parts = [repeat_batch(part, times) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def entry_of(name: str, batch: Any, getter: Getter) -> Any:
    """What ``getter``, the argument ``name``, finds in a batch.

    Raises:
        ValueError: If the batch has no such key or index.
    """
    if not isinstance(getter, (str, int)):
        return getter(batch)
    is_field = isinstance(getter, str) and hasattr(batch, "_fields")  # of a named tuple
    try:
        return getattr(batch, str(getter)) if is_field else batch[getter]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"{name}={getter!r} is not in a batch: {_outline(batch)}") from error


def _get(batch: Any, getter: Getter | None, keys: tuple[str, ...], index: int) -> Any:
    if getter is not None:
        return entry_of("images" if index == 0 else "labels", batch, getter)
    if isinstance(batch, Tensor):
        return batch if index == 0 else None
    if isinstance(batch, Mapping):
        return next((batch[key] for key in keys if key in batch), None)
    if isinstance(batch, (list, tuple)) and len(batch) > index:
        return batch[index]
    return None


def _outline(batch: Any) -> str:
    """The structure of a batch in words, without its numbers."""
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"a dict of {list(batch)}"
    if isinstance(batch, (list, tuple)):
        return f"{type(batch).__name__}({', '.join(_outline(each) for each in batch)})"
    return type(batch).__name__
