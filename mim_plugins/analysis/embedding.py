"""t-SNE pictures and linear separability of features (Kong et al., section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._tensor import check_shape
from .._versions import importing
from ._figure import new_figure


def tsne(features: Tensor, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """Two-dimensional t-SNE of features, by scikit-learn (van der Maaten and Hinton, 2008).

    Args:
        features: ``(n, D)``, n >= 4; every dimension is standardised first.
        perplexity: At most a third of n is taken. Default: 30.
        seed: Default: 0.

    Returns:
        ``(n, 2)`` float32.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If ``features`` has another shape.
    """
    check_shape("features", features, "n >= 4", "D")
    with importing("t-SNE needs scikit-learn"):
        from sklearn.manifold import TSNE
        from sklearn.preprocessing import StandardScaler

    standardised = StandardScaler().fit_transform(features.float().cpu().numpy())
    perplexity = min(perplexity, len(features) / 3)
    embedding = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return torch.from_numpy(embedding.fit_transform(standardised))


def linear_separability(features: Tensor, labels: Tensor, folds: int = 5, seed: int = 0) -> float:
    """Accuracy of logistic regression, by stratified cross-validation.

    Args:
        features: ``(n, D)``; standardised within each fold.
        labels: ``(n,)`` long, every class at least ``folds`` times.
        folds: At least 2. Default: 5.
        seed: Of the folds. Default: 0.

    Returns:
        Share of held-out images that are classified rightly, in [0, 1].

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If shapes do not fit or a class is too small.
    """
    check_shape("features", features, f"n >= {2 * folds}", "D")
    check_shape("labels", labels, len(features))
    smallest = int(labels.unique(return_counts=True)[1].min())
    if folds < 2 or smallest < folds:
        raise ValueError(
            f"folds must be at least 2 and at most the smallest class, {smallest}, got {folds}"
        )
    with importing("linear separability needs scikit-learn"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    x, y = features.float().cpu().numpy(), labels.cpu().numpy()
    return float(cross_val_score(model, x, y, cv=split).mean())


def plot_embeddings(
    embeddings: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str] | None = None
) -> Any:
    """Named embeddings side by side, a colour per class.

    Args:
        embeddings: Names and ``(n, 2)``.
        labels: ``(n,)`` long.
        classes: Names of the classes, for a legend. Default: none.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``embeddings`` is empty or does not fit ``labels``.
    """
    if not embeddings:
        raise ValueError("embeddings must name at least one")
    for name, points in embeddings.items():
        check_shape(f"embeddings[{name!r}]", points, len(labels), 2)
    figure, axes = new_figure(1, len(embeddings))
    labels = labels.cpu()
    for axis, (name, points) in zip(axes[0], embeddings.items(), strict=True):
        for index, label in enumerate(labels.unique().tolist()):
            chosen = points[labels == label]
            axis.scatter(
                *chosen.T.tolist(),
                s=9,
                color=f"C{index % 10}",
                marker="osv^D"[index // 10 % 5],
                label=classes[label] if classes else None,
            )
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    if classes:
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", fontsize=7)
    return figure
