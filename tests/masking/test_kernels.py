from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from mim_plugins.apps.photos import load_photo
from mim_plugins.masking import DPPMasking, patch_kernel, sample_kdpp
from mim_plugins.masking.dpp import _greedy_map_torch
from mim_plugins.masking.kernels import unit_features


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    crops = [load_photo(name)[:224, :224] for name in ("astronaut", "coffee", "brick")]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def test_pixel_features_are_the_patches(photos: torch.Tensor) -> None:
    features = unit_features(photos, (14, 14), "pixels")
    assert features.shape == (3, 196, 768)
    patch = photos[1, :, 16 * 3 : 16 * 4, 16 * 5 : 16 * 6]
    assert torch.equal(features[1, 3 * 14 + 5], patch.flatten())


def test_pooled_features_are_block_means(photos: torch.Tensor) -> None:
    features = unit_features(photos, (14, 14), "pooled")
    assert features.shape == (3, 196, 48)
    expected = photos[2, 1, 16:20, 32:36].mean()  # first 4 x 4 block of unit (1, 2), green
    assert features[2, 14 + 2].view(3, 4, 4)[1, 0, 0] == pytest.approx(expected.item(), abs=1e-6)


def test_small_units_are_not_enlarged(photos: torch.Tensor) -> None:
    small = photos[:, :, :32, :32]
    pooled, pixels = (unit_features(small, (16, 16), name) for name in ("pooled", "pixels"))
    assert torch.equal(pooled, pixels)


def test_rbf_agrees_with_sklearn_and_the_median_heuristic(photos: torch.Tensor) -> None:
    features = unit_features(photos, (14, 14), "pixels")
    similarity = patch_kernel(features).numpy()
    for x, actual in zip(features.double().numpy(), similarity, strict=True):
        pairs = [(i, j) for i in range(0, 196, 7) for j in range(196) if i != j]
        distances = sorted(((x[i] - x[j]) ** 2).sum() for i, j in pairs)
        median = distances[(len(distances) - 1) // 2]
        expected = rbf_kernel(x, gamma=1 / (2 * median))
        np.testing.assert_allclose(actual, expected, atol=2e-5)
        everywhere = np.sqrt(np.median(pdist(x) ** 2))
        assert np.sqrt(median) == pytest.approx(everywhere, rel=0.1)
    assert (similarity.diagonal(axis1=1, axis2=2) == 1).all()


def test_fixed_bandwidth_and_cosine_agree_with_sklearn(photos: torch.Tensor) -> None:
    features = unit_features(photos, (14, 14), "pixels")
    x = features[0].double().numpy()
    rbf = patch_kernel(features, bandwidth=3.0)[0].numpy()
    np.testing.assert_allclose(rbf, rbf_kernel(x, gamma=1 / 18), atol=5e-5)
    cosine = patch_kernel(features, "cosine")[0].numpy()
    np.testing.assert_allclose(cosine, cosine_similarity(x), atol=2e-5)


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5])
def test_median_of_few_patches(num: int) -> None:
    x = torch.rand(1, num, 7, generator=torch.Generator().manual_seed(num))
    distances = sorted(((x[0, i] - x[0, j]) ** 2).sum() for i in range(num) for j in range(i))
    actual = patch_kernel(x)[0]
    if num == 1:
        assert actual.item() == 1
        return
    expected = rbf_kernel(x[0].numpy(), gamma=0.5 / distances[(len(distances) - 1) // 2].item())
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-5)


def test_constant_image_is_all_ones() -> None:
    features = unit_features(torch.full((2, 3, 32, 32), 0.3), (4, 4))
    assert (patch_kernel(features) == 1).all()


def test_mostly_equal_patches_are_told_apart() -> None:
    """With a median distance of 0 equal patches have similarity 1, others 0."""
    x = torch.zeros(1, 10, 5)
    x[0, 9], x[0, 8] = 1.0, 2.0
    similarity = patch_kernel(x)[0]
    expected = torch.eye(10)
    expected[:8, :8] = 1
    assert torch.equal(similarity, expected)


def test_computed_in_float32_under_autocast(photos: torch.Tensor) -> None:
    features = unit_features(photos, (14, 14), "pixels")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = patch_kernel(features)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, patch_kernel(features))


def test_features_of_a_callable(photos: torch.Tensor) -> None:
    tokens = torch.randn(3, 196, 12)
    assert torch.equal(unit_features(photos, (14, 14), lambda _: tokens), tokens)
    with pytest.raises(ValueError, match=r"features\(images\) must have shape \(3, 196, D\), got"):
        unit_features(photos, (14, 14), lambda _: tokens[:, 1:])


def test_bad_kernel() -> None:
    x = torch.rand(1, 4, 3)
    with pytest.raises(ValueError, match=r"kernel must be one of .*got 'laplace'"):
        patch_kernel(x, "laplace")
    with pytest.raises(ValueError, match="bandwidth must be positive and finite, got -1"):
        patch_kernel(x, bandwidth=-1)
    with pytest.raises(ValueError, match="bandwidth applies to kernel='rbf' only"):
        patch_kernel(x, "cosine", bandwidth=1.0)


class Products(TorchDispatchMode):
    """Notes the dtype of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removesuffix("_") in ("aten::mm", "aten::bmm", "aten::baddbmm"):
            self.dtypes.add(args[-1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
@pytest.mark.parametrize("method", ["greedy", "exact"])
def test_no_product_is_left_to_tf32(kernel: str, method: str) -> None:
    """Which rounds the factors of float32 products to 10 bits where a user allows it."""
    masking = DPPMasking(method=method, kernel=kernel)
    with Products() as products:
        similarity = masking.similarity(torch.rand(2, 3, 224, 224), (14, 14))
        if method == "exact":
            sample_kdpp(similarity, 4)
            masking(torch.rand(2, 3, 224, 224), mask_ratio=0.98, patch_size=16)
        else:
            _greedy_map_torch(similarity, 4, 0.1, True, torch.rand(2, 196))
    assert products.dtypes == {torch.float64}
