import math

import pytest
import torch
from torch import Tensor

from mim_plugins.analysis import MONITORS, effective_rank, monitor, singular_spectrum
from mim_plugins.analysis.monitors import check_views, monitors_of, views_of


@pytest.fixture
def spread() -> object:
    @monitor(views=3)
    def spread(features: Tensor) -> dict[str, float]:
        means = features.mean(dim=1)
        return {"within": (features - means[:, None]).std().item(), "n": float(len(features))}

    yield spread
    del MONITORS["spread"]


def test_numbers_curves_and_dicts(spread: object) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(10, 4, 6, generator=generator)  # 10 images in 4 views
    chosen = monitors_of(["effective_rank", singular_spectrum, "spread", lambda f: f.sum()])
    figures: dict = {}
    for each in chosen:
        figures |= each(features)
    assert figures["effective_rank"] == effective_rank(features[:, 0])
    assert figures["singular_spectrum"] == singular_spectrum(features[:, 0]).tolist()
    assert figures["n"] == 10
    centred = features[:, :3] - features[:, :3].mean(dim=1, keepdim=True)
    assert figures["within"] == pytest.approx(centred.std().item())
    assert figures["<lambda>"] == pytest.approx(features[:, 0].sum().item())
    assert views_of(chosen) == 3
    assert views_of(chosen[:2]) == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_diverged_features_give_nan_and_no_error(wrong: float) -> None:
    features = torch.rand(10, 1, 6)
    features[3, 0, 2] = wrong

    def fragile(features: Tensor) -> float:
        return torch.linalg.eigvalsh(features.T @ features)[0].item()

    for each in monitors_of([*(m for m in MONITORS if MONITORS[m].views is None), fragile]):
        for value in each(features).values():
            assert all(map(math.isnan, value if isinstance(value, list) else [value])), each.name

    def broken(features: Tensor) -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError):  # a fault of the function is one
        monitors_of([broken])[0](torch.rand(10, 1, 6))


def test_views_must_differ(spread: object) -> None:
    images = torch.rand(4, 1, 3, 8, 8)
    check_views(images, monitors_of(["effective_rank"]))
    check_views(torch.rand(4, 3, 3, 8, 8), monitors_of(["spread"]))
    with pytest.raises(ValueError, match="spread must see random views"):
        check_views(images.expand(4, 3, 3, 8, 8), monitors_of(["spread"]))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        check_views(images[:1], monitors_of(["spread"]))


@pytest.mark.parametrize("given", ["effective_rank", None, [3], {"effective_rank": 1}])
def test_other_things_are_no_monitors(given: object) -> None:
    with pytest.raises(TypeError, match="monitors must be a list of names and functions"):
        monitors_of(given)


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['rank'\]"):
        monitors_of(["effective_rank", "rank"])
    with pytest.raises(ValueError, match="must not be empty"):
        monitors_of([])
    with pytest.raises(ValueError, match="views must be at least 2"):
        monitor(views=1)
