"""The compiled loops: PyTorch's masks, threads, forked processes, extreme kernels and pixels."""

import multiprocessing

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed")

from mim_plugins.apps.photos import PHOTOS, photo_crops
from mim_plugins.masking import DPPMasking, RandomMasking, _numba, greedy_map
from mim_plugins.masking.kernels import unit_features


def photos(size: int = 224) -> np.ndarray:
    rng = np.random.default_rng(0)
    crops = [np.asarray(crop) for name in PHOTOS for crop in photo_crops(name, 2, size, True, rng)]
    return np.stack(crops)


def random_numbers(batch: int, num: int) -> torch.Tensor:
    return torch.rand(batch, num, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(
    ("size", "unit", "settings"),
    [
        (224, 16, {}),
        (192, 32, {}),
        (224, 14, {}),  # averaged over windows that overlap
        (64, 4, {}),  # as small as they are
        (96, 16, {"features": "pixels"}),
        (96, 16, {"bandwidth": 2.0}),
        (96, 16, {"kernel": "cosine"}),
        (96, 16, {"kernel": "cosine", "features": "pixels"}),
    ],
    ids=str,
)
def test_from_pixels_to_masks_as_in_pytorch(
    size: int, unit: int, settings: dict, tau: float
) -> None:
    """Features, kernel and greedy choice one after the other, in PyTorch."""
    pixels = torch.from_numpy(photos(size)).permute(0, 3, 1, 2)[:, :, unit:]  # not square
    grid = size // unit - 1, size // unit
    noise = random_numbers(len(pixels), grid[0] * grid[1])
    num_keep = noise.shape[1] // 4
    masking = DPPMasking(tau=tau, **settings)
    assert masking.has_compiled_path
    for images in (pixels, pixels.contiguous(), pixels / 255, pixels.double()[:, :1] / 255):
        kept = masking.scores(images, grid, num_keep, noise, None).argsort(dim=1)[:, :num_keep]
        similarity = masking.similarity(images, grid)
        expected = masking.choose(similarity, num_keep, noise)
        differ = (kept.sort().values != expected.sort().values).any(dim=1)
        assert differ.float().mean() <= 0.04  # at most one: by the last digit of a float32


@pytest.mark.parametrize("sides", [(224, 224), (112, 196), (28, 28)])
@pytest.mark.parametrize("features", ["pooled", "pixels"])
def test_averages_bit_for_bit(sides: tuple[int, int], features: str) -> None:
    pixels = photos()[:2, : sides[0], : sides[1]]
    grid = sides[0] // 14, sides[1] // 14
    side = (4, 4) if features == "pooled" else (14, 14)
    expected = unit_features(torch.from_numpy(pixels).permute(0, 3, 1, 2), grid, features)
    for image, units in zip(pixels, expected.numpy(), strict=True):
        last = np.ascontiguousarray(image).reshape(1, len(image), -1)
        first = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
        np.testing.assert_array_equal(_numba._pooled(last, 3, *grid, *side).T, units)
        np.testing.assert_array_equal(_numba._pooled(first, 1, *grid, *side).T, units)


def test_a_similarity_of_ones_own_is_used() -> None:
    class Own(DPPMasking):
        def similarity(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
            return torch.eye(grid[0] * grid[1]).expand(len(images), -1, -1)

    images = torch.from_numpy(photos(96)).permute(0, 3, 1, 2).float()
    noise = random_numbers(len(images), 36)
    own, expected = Own(tau=0.0)(images, noise=noise), noise.argmin(dim=1)
    # All gains are equal: after the random start the units come in order.
    assert torch.equal(own.ids_keep[:, 0], expected)
    assert all(ids[1:] == sorted(ids[1:]) for ids in own.ids_keep.tolist())
    assert max(own.ids_keep[:, 1:].flatten().tolist()) < 9


def test_same_masks_whatever_the_number_of_threads() -> None:
    images = torch.from_numpy(photos(96)).permute(0, 3, 1, 2).float()
    noise = random_numbers(len(images), 36)
    threads = torch.get_num_threads()
    kept = []
    try:
        for number in (1, 2, 7):
            torch.set_num_threads(number)
            kept.append(DPPMasking(tau=0.1)(images, noise=noise).ids_keep)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def _masks_with_two_threads(kernels: torch.Tensor, queue: object) -> None:
    torch.set_num_threads(2)
    queue.put(greedy_map(kernels, 4, noise=kernels[:, 0]).tolist())


def test_a_forked_process_starts_threads_of_its_own() -> None:
    features = torch.rand(4, 16, 3, generator=torch.Generator().manual_seed(0))
    kernels = torch.exp(-torch.cdist(features, features))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = greedy_map(kernels, 4, noise=kernels[:, 0]).tolist()
    finally:
        torch.set_num_threads(threads)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_masks_with_two_threads, args=(kernels, queue))
    child.start()
    child.join(timeout=60)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert queue.get() == expected


def test_larger_and_smaller_diagonals() -> None:
    """Scaling a kernel does not change the choice, nor does the type it is given in."""
    x = torch.rand(20, 40, 3, generator=torch.Generator().manual_seed(0)) * 3
    L = torch.exp(-0.5 * torch.cdist(x, x) ** 2)
    noise = random_numbers(20, 40)
    expected = greedy_map(L, 12, noise=noise)
    for scale in (2.0**-60, 2.0**-12, 2.0**12, 2.0**60):
        assert torch.equal(greedy_map(L * scale, 12, noise=noise), expected)
    assert torch.equal(greedy_map(L.double(), 12, noise=noise), expected)
    half = greedy_map(L, 12, tau=0.5, noise=noise)
    assert not torch.equal(half, expected)
    assert torch.equal(greedy_map(L * 2.0**12, 12, tau=0.5, noise=noise), half)  # a share


@pytest.mark.parametrize("value", [0.3, 255.0, np.nan, np.inf, -np.inf, 3e38])
def test_images_without_content_get_random_masks(value: float) -> None:
    images = torch.full((3, 3, 32, 32), value)
    noise = random_numbers(3, 16)
    random = RandomMasking(patch_size=8)(images, noise=noise)
    assert torch.equal(DPPMasking(patch_size=8, tau=0.0)(images, noise=noise).mask, random.mask)


def test_infinite_pixels_count_as_zero() -> None:
    images = torch.from_numpy(photos(96)).permute(0, 3, 1, 2).float()
    zero, infinite = images.clone(), images.clone()
    zero[:, :, :32, :16] = 0
    infinite[:, :, :32, :16] = torch.inf
    infinite[:, :, 3, 3] = torch.nan
    noise = random_numbers(len(images), 36)
    masks = [DPPMasking(tau=0.0)(x, noise=noise).ids_keep for x in (zero, infinite)]
    assert torch.equal(*masks)
