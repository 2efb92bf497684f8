import pytest
import torch
from sklearn.neighbors import NearestCentroid

from mim_plugins.analysis import mean_classifier, mean_classifier_accuracy


def clusters(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num,), generator=generator)
    centers = torch.eye(3, 8)
    return centers[labels] + 0.4 * torch.randn(num, 8, generator=generator), labels * 5 + 1


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_are_class_means(normalize: bool) -> None:
    features, labels = clusters(30, 0)
    weights, classes = mean_classifier(features, labels, normalize)
    assert classes.tolist() == [1, 6, 11]
    rows = features.double()
    if normalize:
        rows = rows / rows.norm(dim=1, keepdim=True)
    for weight, label in zip(weights, classes, strict=True):
        torch.testing.assert_close(weight, rows[labels == label].mean(dim=0))


def test_accuracy_against_scores_by_hand() -> None:
    train, train_labels = clusters(60, 1)
    test, test_labels = clusters(40, 2)
    right = 0
    for feature, label in zip(test, test_labels, strict=True):
        scores = {y: (train[train_labels == y].mean(dim=0) @ feature).item() for y in (1, 6, 11)}
        right += max(scores, key=lambda y, s=scores: s[y]) == label
    found = mean_classifier_accuracy(train, train_labels, test, test_labels, normalize=False)
    assert found == right / 40
    assert 0.5 < found < 1


def test_equals_nearest_centroid_where_means_have_equal_norm() -> None:
    """||f - W_y||^2 = ||f||^2 - 2 W_y . f + ||W_y||^2: the same order if all norms agree."""
    generator = torch.Generator().manual_seed(3)
    spread = 0.1 * torch.randn(4, 4, generator=generator)
    train = torch.cat([torch.eye(4) + spread, torch.eye(4) - spread])
    labels = torch.arange(4).repeat(2)
    test = torch.randn(50, 4, generator=generator)
    centroids = NearestCentroid().fit(train.numpy(), labels.numpy())
    predicted = torch.from_numpy(centroids.predict(test.numpy()))
    assert mean_classifier_accuracy(train, labels, test, predicted, normalize=False) == 1
    wrong = (predicted + 1) % 4
    assert mean_classifier_accuracy(train, labels, test, wrong, normalize=False) == 0


def test_unknown_test_labels_are_errors() -> None:
    features = torch.eye(3)
    assert mean_classifier_accuracy(
        features, torch.arange(3), features, torch.tensor([0, 1, 9])
    ) == (pytest.approx(2 / 3))


def test_bad_shapes() -> None:
    features, labels = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\), got \(2,\)"):
        mean_classifier(features, labels[:2])
    with pytest.raises(ValueError, match=r"features must have shape \(n >= 1, D\), got \(0, 3\)"):
        mean_classifier_accuracy(features, labels, features[:0], labels[:0])
    with pytest.raises(ValueError, match=r"test_features must have shape \(n, 3\), got \(3, 2\)"):
        mean_classifier_accuracy(features, labels, features[:, :2], labels)
