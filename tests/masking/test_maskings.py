"""What every masking promises, and what the content-blind ones look like."""

import pickle

import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from mim_plugins.masking import (
    BlockMasking,
    ColoredNoiseMasking,
    DPPMasking,
    GridMasking,
    Masking,
    RandomMasking,
    UniformMasking,
)

ALL = [
    RandomMasking,
    GridMasking,
    BlockMasking,
    DPPMasking,
    lambda **kwargs: DPPMasking(tau=0.0, features="pooled", **kwargs),
    lambda **kwargs: DPPMasking(method="exact", kernel="cosine", **kwargs),
    UniformMasking,
    ColoredNoiseMasking,
]
IDS = ["random", "grid", "block", "dpp", "dpp-pooled", "dpp-exact", "uniform", "colored-noise"]

every_masking = pytest.mark.parametrize("make", ALL, ids=IDS)


def images(height: int = 32, width: int = 32, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@every_masking
@pytest.mark.parametrize("mask_ratio", [0.1, 0.3, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48), (40, 24)])
def test_exact_count(make: type[Masking], mask_ratio: float, height: int, width: int) -> None:
    mask = make(mask_ratio=mask_ratio, patch_size=4)(images(height, width))
    patches = height * width // 16
    num_keep = int(patches * (1 - mask_ratio))
    assert mask.ids_keep.shape == (3, num_keep)
    assert mask.mask.sum(dim=1).tolist() == [patches - num_keep] * 3
    assert torch.equal(mask.ids_shuffle.sort(dim=1).values, torch.arange(patches).expand(3, -1))


@every_masking
def test_units_stay_whole(make: type[Masking]) -> None:
    mask = make(mask_ratio=0.6, patch_size=4, mask_unit=8)(images(32, 48))
    units = mask.mask.view(3, 4, 2, 6, 2).transpose(2, 3).flatten(3)  # patches of each unit
    assert torch.equal(units.all(dim=3), units.any(dim=3))
    assert units.all(dim=3).flatten(1).sum(dim=1).tolist() == [24 - int(24 * 0.4)] * 3


@every_masking
def test_deterministic_under_a_generator_and_independent_of_the_global_stream(
    make: type[Masking],
) -> None:
    masking = make(mask_ratio=0.75, patch_size=4)
    state = torch.get_rng_state()
    first = masking(images(), generator=torch.Generator().manual_seed(1))
    again = masking(images(), generator=torch.Generator().manual_seed(1))
    other = masking(images(), generator=torch.Generator().manual_seed(2))
    assert torch.equal(first.ids_shuffle, again.ids_shuffle)
    assert not torch.equal(first.ids_shuffle, other.ids_shuffle)
    assert torch.equal(torch.get_rng_state(), state)


@every_masking
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype(make: type[Masking], dtype: torch.dtype) -> None:
    mask = make(mask_ratio=0.75, patch_size=4)(images().to(dtype))
    assert mask.ids_keep.shape == (3, 16)


@every_masking
@pytest.mark.parametrize(
    "content", ["constant", "saturated", "noise", "nan", "inf", "half black", "duplicates"]
)
def test_any_content(make: type[Masking], content: str) -> None:
    x = images()
    if content == "constant":
        x = torch.full_like(x, 0.4)
    elif content == "saturated":
        x = torch.full_like(x, 3e38)
        x[:, :, ::2] = -3e38
    elif content == "nan":
        x[0] = torch.nan
        x[1, 0, 3, 3] = torch.nan
    elif content == "inf":
        x[0, :, :16] = torch.inf
    elif content == "half black":
        x[:, :, :24] = 0.0
    elif content == "duplicates":
        x = x[:, :, :4, :4].repeat(1, 1, 8, 8)
    mask = make(mask_ratio=0.75, patch_size=4)(x)
    assert mask.ids_keep.shape == (3, 16)
    assert torch.equal(mask.ids_shuffle.sort(dim=1).values, torch.arange(64).expand(3, -1))


@every_masking
def test_batch_of_one_and_one_patch_kept(make: type[Masking]) -> None:
    mask = make(mask_ratio=0.75, patch_size=16)(images(batch=1))
    assert mask.ids_keep.shape == (1, 1)


@every_masking
def test_pickle_and_repr(make: type[Masking]) -> None:
    masking = make(mask_ratio=0.5, patch_size=4)
    assert vars(pickle.loads(pickle.dumps(masking))) == vars(masking)
    assert "mask_ratio=0.5" in repr(masking)


@every_masking
@pytest.mark.parametrize("mask_ratio", [0.0, 1.0, -0.1, 75])
def test_rejects_mask_ratio(make: type[Masking], mask_ratio: float) -> None:
    with pytest.raises(ValueError, match=r"mask_ratio must be in \(0, 1\), got"):
        make(mask_ratio=mask_ratio)


@every_masking
def test_rejects_sizes(make: type[Masking]) -> None:
    for settings, model in (({"patch_size": 16}, {}), ({}, {"patch_size": 16}), ({}, {})):
        with pytest.raises(ValueError, match="a multiple of patch_size=16, got 24"):
            make(mask_unit=24, **settings)(images(48, 48), **model)
    with pytest.raises(ValueError, match="a multiple of patch_size=16, got 24"):
        make(mask_unit=24, patch_size=16)
    with pytest.raises(TypeError, match=r"patch_size must be an int, got \(16, 16\)"):
        make(patch_size=(16, 16))
    with pytest.raises(ValueError, match="patch_size must be at least 1, got 0"):
        make(patch_size=0)
    with pytest.raises(ValueError, match="multiples of mask_unit=16, got 32 x 40"):
        make()(images(32, 40))
    with pytest.raises(ValueError, match="keeps none of the 4 masking units"):
        make(mask_ratio=0.9)(images(32, 32))
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, H, W\)"):
        make()(images()[0])
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor, got ndarray"):
        make()(images().float().numpy())
    with pytest.raises(ValueError, match=r"noise must have shape \(3, 4\), got \(3, 5\)"):
        make()(images(), noise=torch.rand(3, 5))


@every_masking
def test_ratio_and_patch_size_are_the_models(make: type[Masking]) -> None:
    """Handed over with the call they do what they do in the constructor; they may change."""
    masking, noise = make(), torch.rand(3, 64)
    for ratio, patch in ((0.5, 4), (0.8, 4)):
        own = make(mask_ratio=ratio, patch_size=patch)
        generators = [torch.Generator().manual_seed(5) for _ in range(2)]
        expected = own(images(), noise=noise, generator=generators[0])
        found = masking(
            images(), mask_ratio=ratio, patch_size=patch, noise=noise, generator=generators[1]
        )
        assert torch.equal(found.ids_shuffle, expected.ids_shuffle)
        assert found.num_keep == int(64 * (1 - ratio))
    assert masking(images(batch=1)).num_keep == 1  # alone: 0.75 and 16
    same = own(images(), mask_ratio=0.8, patch_size=4)
    assert same.num_keep == expected.num_keep
    with pytest.raises(ValueError, match="mask_ratio is 0.8 in the masking and 0.75 in what uses"):
        own(images(), mask_ratio=0.75)
    with pytest.raises(ValueError, match="patch_size is 4 in the masking and 8 in what uses it"):
        own(images(), patch_size=8)
    with pytest.raises(ValueError, match=r"mask_ratio must be in \(0, 1\), got 1.5"):
        masking(images(), mask_ratio=1.5)
    with pytest.raises(TypeError, match="noise must be a torch.Tensor, got list"):
        masking(images(), noise=[0.5])


def test_random_masking_is_the_stock_arithmetic() -> None:
    """The lines of MAE's ``random_masking``, as mmpretrain has them."""
    torch.manual_seed(3)
    noise = torch.rand(4, 64)
    ids_shuffle = torch.argsort(noise, dim=1)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    torch.manual_seed(3)
    mask = RandomMasking(mask_ratio=0.75, patch_size=4)(images(batch=4))
    assert torch.equal(mask.ids_shuffle, ids_shuffle)
    assert torch.equal(mask.ids_restore, ids_restore)


def test_grid_keeps_one_of_every_two_by_two() -> None:
    mask = GridMasking(mask_ratio=0.75, patch_size=16)(images(224, 224, batch=8)).mask
    blocks = mask.view(8, 7, 2, 7, 2).sum(dim=(2, 4))
    assert (blocks == 3).all()
    assert len(torch.unique(mask, dim=0)) > 1, "the pattern should be shifted at random"
    fixed = GridMasking(mask_ratio=0.75, patch_size=16, random_shift=False)(
        images(224, 224, batch=8)
    )
    assert len(torch.unique(fixed.mask, dim=0)) == 1


def test_grid_is_even_at_other_ratios() -> None:
    kept = ~GridMasking(mask_ratio=0.5, patch_size=16)(images(224, 224)).mask
    assert (kept.view(3, 7, 2, 7, 2).sum(dim=(2, 4)) == 2).all()


def test_blocks_are_blocky() -> None:
    """Removed units have more removed neighbours than under random masking."""

    def neighbours(masking: Masking) -> float:
        mask = masking(
            images(224, 224, batch=64), generator=torch.Generator().manual_seed(0)
        ).mask.view(64, 14, 14)
        return (mask[:, 1:] == mask[:, :-1]).float().mean().item()

    block = neighbours(BlockMasking(mask_ratio=0.5))
    random = neighbours(RandomMasking(mask_ratio=0.5))
    assert random < 0.55
    assert block > 0.85


def test_block_masks_differ_between_images_and_reach_every_position() -> None:
    mask = BlockMasking(mask_ratio=0.5, patch_size=8)(
        images(64, 64, batch=1).expand(2000, -1, -1, -1),
        generator=torch.Generator().manual_seed(0),
    ).mask
    assert len(torch.unique(mask, dim=0)) > 1000
    removed = mask.float().mean(dim=0).view(8, 8)
    assert removed.min() > 0.1
    assert removed.max() < 0.9
    # Rectangles reach the border less often, on all sides alike.
    for mirrored in (removed.flip(0), removed.flip(1)):
        assert (removed - mirrored).abs().max() < 0.06


def test_block_rejects_its_own_arguments() -> None:
    with pytest.raises(ValueError, match="min_units must be at least 1, got 0"):
        BlockMasking(min_units=0)
    with pytest.raises(ValueError, match=r"min_aspect must be in \(0, 1\], got 2"):
        BlockMasking(min_aspect=2)


@pytest.mark.parametrize(("ratio", "window", "most"), [(0.75, 2, 1), (0.5, 2, 2), (0.75, 4, 4)])
def test_uniform_masks_show_as_much_in_every_window(ratio: float, window: int, most: int) -> None:
    masking = UniformMasking(mask_ratio=ratio, patch_size=4, window=window)
    mask = masking(images(batch=500)[:1].expand(500, -1, -1, -1)).mask
    n = 8 // window
    assert ((~mask).view(500, n, window, n, window).sum(dim=(2, 4)) == most).all()
    assert ((~mask).float().mean(dim=0) - (1 - ratio)).abs().max() < 0.12  # 6 standard errors


def test_uniform_masks_at_other_ratios_and_grids() -> None:
    mask = UniformMasking(mask_ratio=0.6, patch_size=4)(images(20, 28)).mask.view(3, 5, 7)
    visible = (~mask[:, :4, :6]).view(3, 2, 2, 3, 2).sum(dim=(2, 4))  # whole windows
    assert visible.min() >= 1
    assert visible.max() <= 2


@pytest.mark.parametrize("color", ["red", "blue", "green", "purple"])
def test_colored_noise_is_filtered_as_scipy_filters_it(color: str) -> None:
    uniform = torch.rand(4, 14 * 16, generator=torch.Generator().manual_seed(0))
    masking = ColoredNoiseMasking(color=color, sigma=1.2)
    found = -masking.scores(torch.zeros(4, 1, 14, 16), (14, 16), 1, uniform, None)
    for noise, filtered in zip(uniform, found, strict=True):
        white = norm.ppf(noise.double().numpy()).reshape(14, 16) / 2**0.5
        narrow, wide = (gaussian_filter(white, s, mode="wrap", truncate=8) for s in (1.2, 2.4))
        green = narrow - wide
        expected = {"red": narrow, "blue": white - narrow, "green": green, "purple": white - green}
        error = filtered.view(14, 16).numpy() - expected[color]
        assert abs(error).max() < 0.02


def test_colored_noise_rejects_its_own_arguments() -> None:
    with pytest.raises(ValueError, match="color must be one of .* got 'pink'"):
        ColoredNoiseMasking(color="pink")
    with pytest.raises(ValueError, match="sigma2 must be larger than sigma=2, got 1"):
        ColoredNoiseMasking(sigma=2, sigma2=1)
