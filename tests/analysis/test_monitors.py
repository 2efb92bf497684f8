import math

import pytest
import torch
from torch import Tensor

from mim_plugins.analysis import MONITORS, effective_rank, monitor, singular_spectrum
from mim_plugins.analysis.monitors import FeatureWatch, figures_of


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
    chosen = ["effective_rank", singular_spectrum, "spread", lambda f: f.sum()]
    watch = FeatureWatch(chosen, num_images=10, batch_size=7)
    seen: list = []

    def collate(items: list) -> Tensor:
        seen.extend(items)
        return torch.rand(len(items), 3, 8, 8)

    watch.take(range(100, 200), collate)
    assert seen == [index for index in range(100, 200, 11) for _ in range(3)]
    batches = iter(features[:, :3].flatten(0, 1).split(7))
    figures = watch.measure(lambda images: next(batches))
    assert figures["effective_rank"] == effective_rank(features[:, 0])
    assert figures["singular_spectrum"] == singular_spectrum(features[:, 0]).tolist()
    assert figures["n"] == 10
    centred = features[:, :3] - features[:, :3].mean(dim=1, keepdim=True)
    assert figures["within"] == pytest.approx(centred.std().item())
    assert figures["<lambda>"] == pytest.approx(features[:, 0].sum().item())
    single = FeatureWatch(chosen[:2], num_images=10, batch_size=7)
    single.take(range(5), collate)
    assert single.images.shape == (5, 1, 3, 8, 8)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_diverged_features_give_nan_and_no_error(wrong: float) -> None:
    features = torch.rand(10, 1, 6)
    features[3, 0, 2] = wrong

    def fragile(features: Tensor) -> float:
        return torch.linalg.eigvalsh(features.T @ features)[0].item()

    for each in [*(m for m in MONITORS.values() if m.views is None), fragile]:
        for value in figures_of(each, features).values():
            assert all(map(math.isnan, value if isinstance(value, list) else [value])), each

    def broken(features: Tensor) -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError):  # a fault of the function is one
        figures_of(broken, torch.rand(10, 1, 6))


def test_views_must_differ(spread: object) -> None:
    images = torch.rand(4, 3, 8, 8)
    FeatureWatch(["effective_rank"], 4, 4).take(images, torch.stack)
    watch = FeatureWatch(["spread"], 4, 4)
    watch.take(images, lambda items: torch.rand(len(items), 3, 8, 8))
    with pytest.raises(ValueError, match="spread must see random views"):
        watch.take(images, torch.stack)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        watch.take(images[:1], torch.stack)
    with pytest.raises(TypeError, match="dataset must be one that can be indexed.*got <list_iter"):
        watch.take(iter([1, 2]), torch.stack)


@pytest.mark.parametrize("given", ["effective_rank", None, [3], {"effective_rank": 1}])
def test_other_things_are_no_monitors(given: object) -> None:
    with pytest.raises(TypeError, match="monitors must be a list of names and functions"):
        FeatureWatch(given, 4, 4)


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['rank'\]"):
        FeatureWatch(["effective_rank", "rank"], 4, 4)
    with pytest.raises(ValueError, match="must not be empty"):
        FeatureWatch([], 4, 4)
    with pytest.raises(ValueError, match="views must be at least 2"):
        monitor(views=1)
