"""Boundary weights, against a brute-force search for visible neighbours."""

import pytest
import torch

from mim_plugins.masking import RandomMasking
from mim_plugins.regularizers import boundary_weights
from mim_plugins.regularizers.boundary import weighted_mean


def brute_force(mask: torch.Tensor, patch_size: int, width: int, weight: float) -> torch.Tensor:
    """``mask`` ``(rows, cols)``: every pixel looks at every pixel of its square."""
    pixels = mask.repeat_interleave(patch_size, 0).repeat_interleave(patch_size, 1)
    height, length = pixels.shape
    out = torch.zeros(height, length)
    for y in range(height):
        for x in range(length):
            if not pixels[y, x]:
                continue
            square = pixels[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
            out[y, x] = 1.0 if square.all() else weight
    return out


@pytest.mark.parametrize("width", [0, 1, 2, 3, 5, 9])
@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_against_brute_force(width: int, weight: float) -> None:
    generator = torch.Generator().manual_seed(width)
    mask = torch.rand(3, 4, 5, generator=generator) < 0.75
    found = boundary_weights(mask.flatten(1), (4, 5), 4, width, boundary_weight=weight)
    expected = torch.stack([brute_force(m, 4, width, weight) for m in mask])
    torch.testing.assert_close(found, expected)
    assert torch.equal(
        found, boundary_weights(mask.float(), (4, 5), 4, width, boundary_weight=weight)
    )


def test_extreme_masks() -> None:
    everything, nothing = torch.ones(1, 4).bool(), torch.zeros(1, 4).bool()
    assert boundary_weights(everything, (2, 2), 3, 5).eq(1).all()  # no visible pixel is near
    assert boundary_weights(nothing, (2, 2), 3, 1).eq(0).all()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_how_many_pixels_are_left_at_mae_masks(width: int) -> None:
    """Of each axis a share q = 2 w / p of a patch's pixels sees one neighbour, the rest none."""
    images = torch.zeros(16, 3, 640, 640)  # large, so that the image's border counts little
    mask = RandomMasking(mask_ratio=0.75)(images, generator=torch.Generator().manual_seed(0)).mask
    left = boundary_weights(mask, (40, 40), 16, width).mean() / 0.75
    q, ratio = 2 * width / 16, 0.75
    expected = (1 - q) ** 2 + 2 * q * (1 - q) * ratio + q**2 * ratio**3
    assert left.item() == pytest.approx(expected, abs=0.025)


def test_weighted_mean_has_gradient_only_where_weights_are() -> None:
    error = torch.rand(2, 6, 6, dtype=torch.float64, requires_grad=True)
    weights = (torch.rand(2, 6, 6) < 0.5).double()
    loss = weighted_mean(error, weights)
    assert loss.item() == pytest.approx(error[weights.bool()].mean().item())
    loss.backward()
    torch.testing.assert_close(error.grad, weights / weights.sum())
    error.grad = None
    nothing = weighted_mean(error, torch.zeros(2, 6, 6))
    nothing.backward()
    assert nothing.item() == 0
    assert error.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"width_px": -1}, ValueError, "width_px"),
        ({"width_px": 1.5}, TypeError, "width_px"),
        ({"boundary_weight": 1.5}, ValueError, "boundary_weight"),
        ({"boundary_weight": "x"}, TypeError, "boundary_weight"),
        ({"patch_size": 0}, ValueError, "patch_size"),
        ({"grid": (2, 3)}, ValueError, "mask must have shape"),
    ],
)
def test_bad_input(change: dict, error: type, match: str) -> None:
    arguments = {"mask": torch.ones(1, 4), "grid": (2, 2), "patch_size": 4, "width_px": 1}
    with pytest.raises(error, match=match):
        boundary_weights(**(arguments | change))
