"""Under every kind of tracing the PyTorch path runs, and gives the masks of the others."""

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mim_plugins.masking import (
    BlockMasking,
    ComplementaryMasking,
    DPPMasking,
    GridMasking,
    Masking,
    RandomMasking,
)

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(2, 16, generator=torch.Generator().manual_seed(1))

MASKINGS: dict[str, Callable[..., Masking]] = {
    "dpp": lambda **settings: DPPMasking(tau=0.3, **settings),
    "complementary": lambda **settings: ComplementaryMasking(base=DPPMasking(tau=0.3), **settings),
    "random": RandomMasking,
    "grid": GridMasking,
    "block": BlockMasking,
}
every_masking = pytest.mark.parametrize("make", MASKINGS.values(), ids=MASKINGS)
every_dpp = pytest.mark.parametrize("name", ["dpp", "complementary"])


@every_dpp
def test_traced_masks_are_the_usual_ones(name: str) -> None:
    masking = MASKINGS[name](patch_size=8)
    expected = masking(IMAGES, noise=NOISE).mask

    def draw(images: torch.Tensor) -> torch.Tensor:
        return masking(images, noise=NOISE).mask

    traced = torch.jit.trace(draw, IMAGES.flip(0), check_trace=False)
    assert torch.equal(traced(IMAGES), expected)
    compiled = torch.compile(draw, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IMAGES), expected)


def test_vmap() -> None:
    masking = DPPMasking(patch_size=8, tau=0.3)
    expected = masking(IMAGES, noise=NOISE).mask

    def draw(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return masking(image[None], noise=noise[None]).mask[0]

    assert torch.equal(torch.vmap(draw)(IMAGES, NOISE), expected)
    same = torch.vmap(lambda image: draw(image, NOISE[0]))(IMAGES)  # only images batched
    assert torch.equal(same, masking(IMAGES, noise=NOISE[:1].expand(2, -1)).mask)


@every_masking
def test_fake_and_meta_images(make: Callable[..., Masking]) -> None:
    masking = make(patch_size=8)
    with FakeTensorMode() as mode:
        assert masking(mode.from_tensor(IMAGES)).ids_keep.shape[1] == 4
    assert masking(IMAGES.to("meta")).mask.is_meta


@every_masking
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_and_empty_batches(make: Callable[..., Masking], dtype: torch.dtype) -> None:
    masking = make(patch_size=8)
    pixels = (IMAGES * 255).to(dtype)
    if name_is_dpp(masking):
        expected = masking(pixels.float(), noise=NOISE).ids_shuffle
        assert torch.equal(masking(pixels, noise=NOISE).ids_shuffle, expected)
    assert masking(pixels).num_keep == 4
    assert masking(pixels[:0]).mask.shape == (0, 16)


def name_is_dpp(masking: Masking) -> bool:
    return isinstance(masking, DPPMasking) or getattr(masking, "base", None) is not None


@pytest.mark.parametrize("features", ["pixels", "pooled"])
@pytest.mark.parametrize("method", ["greedy", "exact"])
def test_dpps_of_whole_numbers_and_empty_batches(features: str, method: str) -> None:
    masking = DPPMasking(patch_size=8, features=features, method=method)
    assert masking((IMAGES * 255).byte()).num_keep == 4
    assert masking(IMAGES[:0]).mask.shape == (0, 16)


@pytest.mark.parametrize("size", [32, 40])  # 16 and 25 units of 16 features: primal and dual
def test_exact_dpps_of_fake_and_meta_images(size: int) -> None:
    masking = DPPMasking(method="exact", kernel="cosine", patch_size=8)
    images = torch.rand(2, 1, size, size)
    with FakeTensorMode() as mode:
        assert masking(mode.from_tensor(images)).ids_keep.shape[1] == (size // 8) ** 2 // 4
    assert masking(images.to("meta")).mask.is_meta
    assert masking(images[:0]).mask.shape == (0, (size // 8) ** 2)
