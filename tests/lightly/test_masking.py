"""The drop-ins beside lightly's own mask functions."""

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import torch
from lightly.models import utils

from mim_plugins.lightly import dpp_block_mask, dpp_token_mask, token_mask
from mim_plugins.lightly.masking import block_mask
from mim_plugins.masking import BlockMasking, ComplementaryMasking, DPPMasking, RandomMasking


def images(batch: int = 4, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mask_ratio", [0.1, 0.6, 0.75, 0.9])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48)])
def test_same_contract_as_random_token_mask(mask_ratio: float, height: int, width: int) -> None:
    size = (4, height * width // 16 + 1)
    stock = utils.random_token_mask(size, mask_ratio)
    ours = dpp_token_mask(images(4, height, width), size, mask_ratio)
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
    assert (ours[0][:, 0] == 0).all()
    everything = torch.cat(ours, dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(size[1]).expand(4, -1))


@pytest.mark.parametrize(
    "masking", [RandomMasking(patch_size=4), DPPMasking(patch_size=4, tau=1.0)]
)
def test_random_masks_equal_stock_bit_for_bit(masking: RandomMasking | DPPMasking) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        stock = utils.random_token_mask((4, 65), mask_ratio=0.75)
        after = torch.rand(1)
        torch.manual_seed(seed)
        ours = token_mask(images(), (4, 65), 0.75, masking=masking)
        assert torch.equal(ours[0], stock[0])
        assert torch.equal(ours[1], stock[1])
        assert torch.equal(torch.rand(1), after), "the random stream is left as stock leaves it"


def test_token_masks_are_the_core_s() -> None:
    torch.manual_seed(0)
    idx_keep, idx_mask = dpp_token_mask(images(), (4, 65), 0.75, tau=0.0)
    torch.manual_seed(0)
    noise = torch.rand(4, 65)[:, 1:]
    expected = DPPMasking(mask_ratio=0.75, patch_size=4, tau=0.0)(images(), noise=noise)
    assert torch.equal(idx_keep[:, 1:] - 1, expected.ids_keep)
    assert torch.equal(idx_mask - 1, expected.ids_mask)


@pytest.mark.parametrize("prefix", [0, 1, 8])
@pytest.mark.parametrize("mask_unit", [None, 8])
def test_grid_masks_equal_stock_bit_for_bit(prefix: int, mask_unit: int | None) -> None:
    """Pixio's cells are masking units."""
    size = (4, 64 + prefix)
    torch.manual_seed(0)
    stock = utils.random_grid_token_mask(size, 0.75, 2, prefix)
    torch.manual_seed(0)
    masking = RandomMasking(mask_unit=mask_unit)
    ours = token_mask(images(), size, 0.75, masking=masking, num_prefix_tokens=prefix, grid_size=2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, stock, strict=True))
    assert masking.mask_unit == mask_unit


def test_larger_masking_units() -> None:
    masking = DPPMasking(mask_unit=8)
    idx_keep, _ = token_mask(images(), (4, 65), 0.75, masking=masking)
    kept = torch.zeros(4, 64).scatter_(1, idx_keep[:, 1:] - 1, 1.0).view(4, 4, 2, 4, 2)
    assert torch.equal(kept.amax(dim=(2, 4)), kept.amin(dim=(2, 4)))


def test_token_mask_rejects() -> None:
    with pytest.raises(ValueError, match="mask_class_token must be False"):
        dpp_token_mask(images(), (4, 65), mask_class_token=True)
    with pytest.raises(ValueError, match=r"must have num_prefix_tokens=1 and the square patches"):
        dpp_token_mask(images(), (4, 60))
    with pytest.raises(ValueError, match="size must start with the number of masks, 4"):
        dpp_token_mask(images(), (3, 65))
    with pytest.raises(ValueError, match=r"mask_ratio must be in \(0, 1\), got 1.5"):
        dpp_token_mask(images(), (4, 65), mask_ratio=1.5)
    with pytest.raises(ValueError, match="mask_ratio is 0.75 in the masking and 0.5 in what uses"):
        token_mask(images(), (4, 65), 0.5, masking=RandomMasking(mask_ratio=0.75))
    with pytest.raises(ValueError, match="patch_size is 8 in the masking and 4 in what uses it"):
        token_mask(images(), (4, 65), 0.75, masking=RandomMasking(patch_size=8))
    with pytest.raises(ValueError, match="mask_unit is 16 in the masking and 8 in what uses it"):
        token_mask(images(), (4, 65), masking=RandomMasking(mask_unit=16), grid_size=2)
    with pytest.raises(TypeError, match="masking must be a mim_plugins.masking.Masking, got None"):
        token_mask(images(), (4, 65), masking=None)


def test_block_mask_has_ibot_s_ratios() -> None:
    """Half of the images lose 70 +- 5 % of their patches each, the others none."""
    torch.manual_seed(0)
    mask = dpp_block_mask(images(200, 40, 40), (200, 10, 10), tau=0.5)
    stock = utils.random_block_mask((200, 10, 10))
    assert mask.shape == stock.shape
    assert mask.dtype == stock.dtype
    counts = mask.flatten(1).sum(dim=1)
    assert (counts == 0).sum() == 100
    shares = counts[counts > 0] / 100
    assert shares.min() >= 0.64
    assert shares.max() <= 0.75
    assert shares.mean().item() == pytest.approx(0.70, abs=0.01)
    assert len(shares.unique()) > 5
    first, second = (counts[:100] > 0).sum(), (counts[100:] > 0).sum()
    assert first + second == 100
    assert min(first, second) > 30, "the masked images are drawn at random"


def test_block_masks_of_every_size_are_the_greedy_choice() -> None:
    torch.manual_seed(0)
    x = images(16)
    mask = block_mask(
        x, (16, 8, 8), 1.0, masking=DPPMasking(mask_ratio=0.7, tau=0.3), mask_ratio_var=0.2
    )
    torch.manual_seed(0)
    noise = torch.rand(16, 64)
    counts = mask.flatten(1).sum(dim=1).tolist()
    assert len(set(counts)) > 4
    for b, count in enumerate(counts):
        alone = DPPMasking(mask_ratio=(count - 0.5) / 64, patch_size=4, tau=0.3)
        expected = alone(x[b : b + 1], noise=noise[b : b + 1]).mask[0]
        assert torch.equal(mask[b].flatten(), expected)


@pytest.mark.parametrize("masking", [RandomMasking(mask_ratio=0.7), BlockMasking()])
def test_block_mask_of_other_maskings(masking: RandomMasking | BlockMasking) -> None:
    counts = block_mask(images(), (4, 8, 8), 1.0, masking=masking).flatten(1).sum(dim=1)
    assert ((counts >= 40) & (counts <= 48)).all()


def test_block_masks_of_larger_units() -> None:
    mask = block_mask(images(), (4, 8, 8), 1.0, masking=DPPMasking(mask_unit=8))
    units = mask.float().view(4, 4, 2, 4, 2)
    assert torch.equal(units.amax(dim=(2, 4)), units.amin(dim=(2, 4)))
    assert mask.any()


def test_block_mask_rejects() -> None:
    masking = RandomMasking(mask_ratio=0.7)
    with pytest.raises(ValueError, match=r"size must be \(4, 8, 8\).*got \(4, 7, 8\)"):
        block_mask(images(), (4, 7, 8), masking=masking)
    with pytest.raises(ValueError, match=r"batch_mask_ratio must be in \[0, 1\], got 2"):
        block_mask(images(), (4, 8, 8), 2, masking=masking)
    with pytest.raises(ValueError, match="mask_ratio_var must keep mask_ratio=0.7"):
        block_mask(images(), (4, 8, 8), masking=masking, mask_ratio_var=0.4)
    with pytest.raises(ValueError, match="method must be 'greedy'"):
        block_mask(images(), (4, 8, 8), masking=DPPMasking(method="exact"))
    with pytest.raises(ValueError, match="masking must draw one mask per image here, got Compl"):
        block_mask(images(), (4, 8, 8), masking=ComplementaryMasking())
