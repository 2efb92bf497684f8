import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim_plugins.analysis import knn_top1


def data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (n,), generator=generator)
    return torch.randn(n, 8, generator=generator) + 0.7 * labels[:, None], labels


@pytest.mark.parametrize(("k", "t"), [(1, 0.1), (7, 0.1), (200, 0.07), (50, 0.01)])
def test_by_brute_force(k: int, t: float) -> None:
    (features, labels), (bank, bank_labels) = data(40, 0), data(90, 1)
    a, b = (F.normalize(each.double(), dim=1) for each in (features, bank))
    correct = 0
    for feature, label in zip(a, labels, strict=True):
        nearest = sorted(range(90), key=lambda j: -float(feature @ b[j]))[:k]
        votes = [0.0] * 5
        for j in nearest:
            votes[bank_labels[j]] += math.exp(float(feature @ b[j]) / t)
        correct += votes.index(max(votes)) == label
    found = knn_top1(features, labels, bank, bank_labels, 5, k, t, block=16)
    assert found == pytest.approx(correct / 40)
    assert 0.2 < found < 1


@pytest.mark.parametrize(("k", "t"), [(1, 1.0), (5, 1e6), (7, 2.0)])
def test_unnormalised_by_brute_force(k: int, t: float) -> None:
    """By Euclidean distance; a large temperature gives every neighbour one vote."""
    (features, labels), (bank, bank_labels) = data(40, 0), data(90, 1)
    scale = 1 + torch.arange(90)[:, None] % 4  # which a cosine would not see
    bank = bank * scale
    correct = 0
    for feature, label in zip(features.double(), labels.tolist(), strict=True):
        distances = [float((feature - each).square().sum() ** 0.5) for each in bank.double()]
        votes = [0.0] * 5
        for j in sorted(range(90), key=lambda i: distances[i])[:k]:
            votes[bank_labels[j]] += math.exp(-distances[j] / t)
        correct += votes.index(max(votes)) == label
    found = knn_top1(features, labels, bank, bank_labels, 5, k, t, block=16, normalize=False)
    assert found == pytest.approx(correct / 40)
    assert found != knn_top1(features, labels, bank, bank_labels, 5, k, t)


@pytest.mark.parametrize("k", [1, 20, 90])
def test_is_lightlys(k: int) -> None:
    benchmarking = pytest.importorskip("lightly.utils.benchmarking", reason="needs lightly")
    (features, labels), (bank, bank_labels) = data(40, 2), data(90, 3)
    predicted = benchmarking.knn_predict(
        F.normalize(features, dim=1), F.normalize(bank, dim=1).T, bank_labels, 5, k
    )
    expected = (predicted[:, 0] == labels).float().mean().item()
    assert knn_top1(features, labels, bank, bank_labels, 5, k) == pytest.approx(expected)


def test_unlabelled_images_do_not_count() -> None:
    (features, labels), (bank, bank_labels) = data(40, 0), data(90, 1)
    expected = knn_top1(features[:30], labels[:30], bank[:50], bank_labels[:50], 5)
    labels[30:] = bank_labels[50:] = -1
    assert knn_top1(features, labels, bank, bank_labels, 5) == expected


def test_a_small_temperature_does_not_overflow() -> None:
    features, labels = data(40, 0)
    assert knn_top1(features, labels, features, labels, 5, 40, 1e-4) == 1


def test_diverged_features_give_nan() -> None:
    features, labels = data(10, 0)
    assert math.isnan(knn_top1(features * torch.nan, labels, features, labels, 5))
    assert math.isnan(knn_top1(features, labels, features * torch.inf, labels, 5))


@pytest.mark.parametrize(
    ("labels", "error", "named"),
    [
        ([0, 1, 2, 5], ValueError, r"neighbours: labels must be in \[0, num_classes=5\).*\[5\]"),
        ([0, 1, 2, -2], ValueError, r"\[-2\]"),
        ([-1] * 4, ValueError, "neighbours: labels must not all be -1"),
        ([0.0, 1.0, 2.0, 3.0], TypeError, "neighbours: labels must be integers"),
        ([0, 1, 2], ValueError, "one per image, 4, got 3"),
        ([[0, 1]] * 4, ValueError, r"one per image, \(B,\)"),
    ],
)
def test_wrong_labels_are_named(labels: list, error: type, named: str) -> None:
    features = torch.rand(4, 3)
    with pytest.raises(error, match=named):
        knn_top1(features, torch.arange(4), features, torch.tensor(labels), 5)
