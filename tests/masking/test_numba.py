"""The compiled path from pixels to masks beside the PyTorch one."""

import multiprocessing

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed")

from mim_plugins.apps.photos import PHOTOS, photo_crops
from mim_plugins.masking import DPPMasking, RandomMasking, _numba, greedy_map
from mim_plugins.masking.dpp import SMALLEST_GAIN, _greedy_map_torch

ARGUMENTS = [
    {"tau": 0.0},
    {"tau": 0.5},
    {"tau": 0.0, "bandwidth": 3.0},
    {"tau": 0.0, "kernel": "cosine"},
    {"tau": 0.0, "features": "pixels"},
]


def photos(size: int = 224) -> np.ndarray:
    rng = np.random.default_rng(0)
    crops = [np.asarray(crop) for name in PHOTOS for crop in photo_crops(name, 2, size, True, rng)]
    return np.stack(crops)


def random_numbers(batch: int, num: int) -> torch.Tensor:
    return torch.rand(batch, num, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize(("size", "patch"), [(224, 16), (224, 14), (96, 32), (108, 27), (48, 4)])
def test_pixels_to_mask_as_in_torch(arguments: dict, size: int, patch: int) -> None:
    """The same patches, or at ties up to rounding others of the same log-determinant."""
    images = torch.from_numpy(photos(size)).permute(0, 3, 1, 2).float() / 255
    masking = DPPMasking(patch_size=patch, **arguments)
    grid, k = masking.layout(size, size)[:2]
    noise = random_numbers(len(images), grid[0] * grid[1])
    L = masking.similarity(images, grid)
    expected = _greedy_map_torch(L, k, max(masking.tau, SMALLEST_GAIN), True, noise)
    assert masking.compiled
    actual = masking(images, noise=noise).ids_keep
    same = (actual == expected).all(dim=1)
    assert same.float().mean() >= 0.7 or masking.kernel == "cosine"  # nearly singular
    rows = torch.arange(len(images))[:, None, None]
    regular = L.double() + 1e-4 * torch.eye(L.shape[1])
    log_det = [
        torch.linalg.slogdet(regular[rows, ids[:, :, None], ids[:, None]]).logabsdet
        for ids in (actual, expected)
    ]
    torch.testing.assert_close(*log_det, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [224, 96])
def test_one_image_as_in_a_batch(size: int, tau: float) -> None:
    pixels = photos(size)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    masking = DPPMasking(tau=tau)
    grid, k = masking.layout(size, size)[:2]
    order = np.random.default_rng(0).permutation(grid[0] * grid[1])
    noise = torch.empty(len(order))
    noise[order] = torch.arange(len(order) - 1.0, -1.0, -1.0) / len(order)
    batch = masking(images, noise=noise.expand(len(images), -1)).mask.view(-1, *grid)
    for mask, image in zip(batch.numpy(), pixels, strict=True):
        view = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
        for same in (image, view, image.astype(np.float64), np.asfortranarray(image)):
            one = masking.image_mask(same, order, grid, k, scale=2)
            np.testing.assert_array_equal(one, mask.repeat(2, axis=0).repeat(2, axis=1))


def test_given_dtypes_agree() -> None:
    """float64 images are used as float32; noise of another type takes the PyTorch path."""
    images = torch.from_numpy(photos(96)).permute(0, 3, 1, 2).double()
    masking = DPPMasking(tau=0.0)
    noise = random_numbers(len(images), 36)
    kept = masking(images.float(), noise=noise).ids_keep
    assert torch.equal(masking(images, noise=noise).ids_keep, kept)
    other = masking(images, noise=noise.double()).ids_keep
    assert (other == kept).all(dim=1).float().mean() >= 0.9


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


def test_selection_goes_on_in_float64() -> None:
    """Nearly singular kernels, where float32 alone does not get to the end."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 60, 2, generator=generator)
    L = torch.exp(-(torch.cdist(x.double(), x.double()) ** 2))
    noise = random_numbers(50, 60)
    chosen = _numba.greedy_map(L.float(), 12, SMALLEST_GAIN, True, noise)
    expected = _greedy_map_torch(L.float(), 12, SMALLEST_GAIN, True, noise)
    before, after = (
        torch.linalg.det(L[0][ids][:, ids]) for ids in (expected[0, :11], expected[0, :12])
    )
    assert after / before < 5e-3
    assert (chosen == expected).all(dim=1).float().mean() >= 0.96


def test_larger_and_smaller_diagonals() -> None:
    """Scaling a kernel does not change the choice, nor does the type it is given in."""
    x = torch.rand(20, 40, 3, generator=torch.Generator().manual_seed(0)) * 3
    L = torch.exp(-0.5 * torch.cdist(x, x) ** 2)
    noise = random_numbers(20, 40)
    expected = greedy_map(L, 12, noise=noise)
    for scale in (2.0**-12, 2.0**12):
        assert torch.equal(greedy_map(L * scale, 12, noise=noise), expected)
    assert torch.equal(greedy_map(L.double(), 12, noise=noise), expected)


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
