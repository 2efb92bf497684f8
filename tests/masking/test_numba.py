"""The compiled greedy stage: threads, forked processes, extreme kernels and pixels."""

import multiprocessing

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed")

from mim_plugins.apps.photos import PHOTOS, photo_crops
from mim_plugins.masking import DPPMasking, RandomMasking, greedy_map


def photos(size: int = 224) -> np.ndarray:
    rng = np.random.default_rng(0)
    crops = [np.asarray(crop) for name in PHOTOS for crop in photo_crops(name, 2, size, True, rng)]
    return np.stack(crops)


def random_numbers(batch: int, num: int) -> torch.Tensor:
    return torch.rand(batch, num, generator=torch.Generator().manual_seed(0))


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
