"""RankMe, alpha-ReQ and LiDAR against closed forms, and their definitions in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mim_plugins.analysis import MONITORS, alpha_req, lidar, rankme
from mim_plugins.analysis.monitors import figures_of


def orthogonal(n: int, k: int, seed: int = 0) -> Tensor:
    """``(n, k)`` with orthonormal columns, each of mean zero."""
    x = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(x - x.mean(dim=0))[0]


def entropy_rank(shares: np.ndarray) -> float:
    return math.exp(-(shares * np.log(shares)).sum())


def test_rankme_of_known_singular_values() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    features = orthogonal(30, 4) * values @ orthogonal(10, 4, seed=1).T
    found = rankme(features)
    expected = 2**1.75  # shares 1/2, 1/4, 1/8, 1/8
    assert found == pytest.approx(expected, rel=1e-4)  # six values of eps are added
    assert rankme(features, eps=0.0) == pytest.approx(expected, rel=1e-9)
    assert rankme(torch.eye(7)) == pytest.approx(7, rel=1e-4)
    assert rankme(torch.ones(5, 3)) == pytest.approx(1, abs=1e-4)


def test_rankme_by_its_definition_is_not_normalised() -> None:
    x = np.random.default_rng(0).normal(size=(40, 12)) * np.arange(1, 13) + 1
    s = np.sqrt(np.linalg.eigvalsh(x.T @ x)[::-1])
    expected = entropy_rank(s / s.sum() + 1e-7)
    assert rankme(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-8)
    assert rankme(torch.from_numpy(x * np.arange(1, 41)[:, None])) != pytest.approx(expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.3])
def test_alpha_of_a_power_law(alpha: float) -> None:
    scale = torch.arange(1, 13, dtype=torch.float64) ** (-alpha / 2)  # of singular values
    features = orthogonal(50, 12) * scale @ orthogonal(20, 12, seed=1).T + 5
    assert alpha_req(features) == pytest.approx(alpha, abs=1e-6)


def test_alpha_by_numpys_polyfit() -> None:
    x = np.random.default_rng(1).normal(size=(60, 9)) * np.arange(1, 10) ** 1.5
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    slope = np.polyfit(np.log(np.arange(1, 10)), np.log(values), 1)[0]
    assert alpha_req(torch.from_numpy(x)) == pytest.approx(-slope, rel=1e-8)
    assert math.isnan(alpha_req(torch.ones(5, 3)))  # no spectrum to speak of


def test_lidar_by_its_definition() -> None:
    rng = np.random.default_rng(2)
    n, views, dim = 25, 10, 6
    x = rng.normal(size=(n, 1, dim)) * [5, 3, 2, 1, 1, 0.1] + rng.normal(size=(n, views, dim)) @ (
        rng.normal(size=(dim, dim))
    )
    means = x.mean(axis=1)
    grand = means.mean(axis=0)
    between = sum(np.outer(m - grand, m - grand) for m in means) / n
    within = sum(np.outer(v - m, v - m) for m, each in zip(means, x, strict=True) for v in each)
    within = within / (n * views) + 1e-4 * np.eye(dim)
    values = np.linalg.eigvals(np.linalg.inv(within) @ between).real  # those of the symmetric one
    expected = entropy_rank(values / values.sum() + 1e-7)
    assert lidar(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-7)


def test_lidar_of_images_apart_in_k_directions() -> None:
    """Means equally far apart along k axes, views scattered equally along all: rank k."""
    noise = torch.randn(1, 10, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = torch.linalg.qr(noise[0] - noise[0].mean(dim=0))[0]  # isotropic about each mean
    for k in (1, 3, 7):
        means = torch.zeros(2 * k, 8, dtype=torch.float64)
        means[range(k), range(k)], means[range(k, 2 * k), range(k)] = 3.0, -3.0
        features = means[:, None] + noise
        assert lidar(features) == pytest.approx(k, rel=1e-4)
    scaled = features * torch.tensor(
        [1.0] * 7 + [100.0]
    )  # what augmentation changes is divided out
    assert lidar(scaled) == pytest.approx(7, rel=1e-4)


@pytest.mark.parametrize("name", ["rankme", "alpha_req", "lidar"])
def test_as_monitors(name: str) -> None:
    features = torch.randn(6, 10, 4, generator=torch.Generator().manual_seed(0))
    assert list(figures_of(MONITORS[name], features)) == [name]
    assert math.isfinite(figures_of(MONITORS[name], features.half())[name])
    features[2, 0, 1] = math.nan
    assert math.isnan(figures_of(MONITORS[name], features)[name])
    with pytest.raises(ValueError, match="features must have shape"):
        MONITORS[name](torch.zeros(4))
