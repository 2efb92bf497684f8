"""t-SNE and linear separability on features whose answer is known."""

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from mim_plugins.analysis import linear_separability, plot_embeddings, tsne


def clusters(distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centers = torch.eye(8)[:3] * distance
    return centers[labels] + torch.randn(60, 8, generator=generator), labels


def test_tsne_keeps_clusters_apart_and_is_deterministic() -> None:
    features, labels = clusters(20.0)
    points = tsne(features)
    assert points.shape == (60, 2)
    assert torch.equal(points, tsne(features))
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert torch.equal(labels[distances.argmin(dim=1)], labels)  # the nearest is of its class


def test_separability() -> None:
    assert linear_separability(*clusters(20.0)) == 1.0
    assert linear_separability(*clusters(0.0)) == pytest.approx(1 / 3, abs=0.2)


def test_plot() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    features, labels = clusters(3.0)
    figure = plot_embeddings({"a": features[:, :2], "b": features[:, 2:4]}, labels, ["x", "y", "z"])
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert len(figure.axes[0].collections) == 3
    with pytest.raises(ValueError, match="embeddings"):
        plot_embeddings({"a": features}, labels)


def test_bad_input() -> None:
    features, labels = clusters(1.0)
    with pytest.raises(ValueError, match="features"):
        tsne(features[0])
    with pytest.raises(ValueError, match="labels"):
        linear_separability(features, labels[:5])
    with pytest.raises(ValueError, match="smallest class"):
        linear_separability(features, torch.arange(60))
