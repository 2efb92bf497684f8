import pytest
import torch

from mim_plugins._pixels import (
    grid_of,
    patchify,
    undo_normalization,
    unit_range,
    unpatchify,
)


@pytest.mark.parametrize(
    ("patches", "size", "grid"),
    [(16, (32, 32), (4, 4)), (32, (32, 64), (4, 8)), (24, (24, 64), (3, 8)), (1, (7, 7), (1, 1))],
)
def test_grid(patches: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert grid_of(patches, *size) == grid


@pytest.mark.parametrize(("patches", "size"), [(15, (32, 32)), (16, (32, 64)), (3, (8, 64))])
def test_no_grid(patches: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"no {patches} square patches"):
        grid_of(patches, *size)


def test_patches_are_lightlys_and_come_back() -> None:
    utils = pytest.importorskip("lightly.models.utils", reason="lightly is not installed")
    square, wide = torch.rand(2, 4, 32, 32), torch.rand(2, 12, 16, 48)
    assert torch.equal(patchify(square, 8), utils.patchify(square, 8))
    assert torch.equal(unpatchify(patchify(wide, 8), 8, 16, 48), wide)
    assert torch.equal(
        patchify(wide, 8)[1, 7].view(8, 8, 12).permute(2, 0, 1), wide[1, :, 8:, 8:16]
    )


def test_unit_range() -> None:
    inside = torch.rand(2, 3, 4, 4)
    assert torch.equal(unit_range(inside)[0], inside)
    images, other = unit_range(inside * 4000 - 1000, inside * 4000 - 1000)
    assert torch.equal(images, other)
    assert images.min() >= 0
    assert images.max() == 1 or images.max() < 1


def test_normalisation_is_undone() -> None:
    images = torch.rand(2, 4, 3, 3)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    back = undo_normalization((images - 0.5) / 0.25, [0.5], [0.25])
    torch.testing.assert_close(back, images)
    expected = torch.stack([images[:, i] * std[i] + mean[i] for i in range(4)], dim=1)
    torch.testing.assert_close(undo_normalization(images, mean, std), expected)
    assert torch.equal(undo_normalization(images, None, None), images)
    with pytest.raises(ValueError, match="mean must be one number, or one per channel.* 4"):
        undo_normalization(images, [0.5] * 3, None)
