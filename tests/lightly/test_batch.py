"""Batches as data sets give them."""

from collections import namedtuple
from typing import Any

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import torch

from mim_plugins.lightly.batch import images_of, labels_of, views_of

A, B = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 4, 4)
Y = torch.tensor([0, 1])
Pair = namedtuple("Pair", "picture kind")


@pytest.mark.parametrize(
    ("batch", "getter", "views"),
    [
        (A, None, [A]),
        ([A, Y], None, [A]),
        ([A], None, [A]),
        (([A, B], Y, ["a", "b"]), None, [A, B]),
        ({"image": A, "label": Y}, None, [A]),
        ({"pixel_values": A}, None, [A]),
        ({"photo": (A, B)}, "photo", [A, B]),
        (Pair(A, Y), None, [A]),
        (Pair(Y, A), "kind", [A]),
        ((Y, A), 1, [A]),
        ({"views": {"weak": A, "strong": B}}, lambda batch: batch["views"]["strong"], [B]),
    ],
)
def test_views(batch: Any, getter: Any, views: list[torch.Tensor]) -> None:
    found = views_of(batch, getter)
    assert len(found) == len(views)
    assert all(one is other for one, other in zip(found, views, strict=True))
    assert images_of(batch, getter) is views[0]


@pytest.mark.parametrize(
    "batch", [[A, Y], (A, Y, ["a", "b"]), {"image": A, "target": Y}, Pair(A, Y), ([A, B], Y)]
)
def test_labels(batch: Any) -> None:
    assert labels_of(batch) is Y


def test_rejects() -> None:
    with pytest.raises(TypeError, match=r"must hold image tensors, got a dict of \['photo'\]"):
        views_of({"photo": A})
    with pytest.raises(TypeError, match="must hold image tensors, got str"):
        views_of("photo")
    with pytest.raises(TypeError, match=r"must hold image tensors, got list\(\)"):
        views_of([])
    with pytest.raises(
        ValueError, match=r"images='photo' is not in a batch: a dict of \['image'\]"
    ):
        views_of({"image": A}, "photo")
    with pytest.raises(TypeError, match=r"must hold a tensor of labels, got a tensor \(2, 3, 8"):
        labels_of(A)
