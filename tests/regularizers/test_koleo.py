"""KoLeo beside lightly's own, and by hand."""

import math

import pytest
import torch

from mim_plugins.regularizers import KoLeoLoss


@pytest.mark.parametrize("shape", [(2, 3), (16, 4), (7, 32)])
def test_value_and_gradient_are_lightlys(shape: tuple[int, int]) -> None:
    theirs = pytest.importorskip("lightly.loss", reason="lightly is not installed").KoLeoLoss()
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = KoLeoLoss(weight=1.0)(features)
    expected = theirs(features)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours, features)
    torch.testing.assert_close(gradient, *torch.autograd.grad(expected, features))


def test_distance_to_the_nearest_in_plain_numbers() -> None:
    """Unit vectors at 0, 60 and 180 degrees: chords 1, 1 and sqrt(3); lengths do not matter."""
    angles = torch.tensor([0.0, math.pi / 3, math.pi], dtype=torch.float64)
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5], [0.1]])
    expected = -math.log(math.sqrt(3)) / 3
    assert KoLeoLoss(weight=1.0)(features).item() == pytest.approx(expected, abs=1e-7)
    # by masks: the mean of each mask's own images
    both = torch.cat([features, features.flip(1)])
    assert KoLeoLoss(weight=2.0)(both, num_masks=2).item() == pytest.approx(2 * expected, abs=1e-7)


def test_degenerate_features_are_finite() -> None:
    for features in (torch.ones(4, 3), torch.zeros(4, 3), torch.ones(1, 3)):
        features.requires_grad_()
        loss = KoLeoLoss(weight=1.0)(features)
        loss.backward()
        assert loss.isfinite()
        assert torch.equal(features.grad, torch.zeros_like(features))
