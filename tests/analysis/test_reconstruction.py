"""Reconstruction scores, against scikit-image and closed forms."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("piq", reason="piq is not installed")

from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mim_plugins.analysis import reconstruction_scores
from mim_plugins.analysis.reconstruction import SCORES
from mim_plugins.apps.photos import photo_crops


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    rng = np.random.default_rng(0)
    crops = [photo_crops(name, 1, 64, True, rng)[0] for name in ("astronaut", "coffee", "grass")]
    return (
        torch.from_numpy(np.stack([np.asarray(crop) for crop in crops])).permute(0, 3, 1, 2) / 255
    )


def test_against_scikit_image(photos: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = (photos + 0.1 * torch.randn(photos.shape, generator=generator)).clamp(0, 1)
    scores = reconstruction_scores(predicted, photos)
    assert tuple(scores) == SCORES
    for index, (ours, image) in enumerate(zip(predicted.double(), photos.double(), strict=True)):
        ours, image = (x.permute(1, 2, 0).numpy() for x in (ours, image))
        ssim = structural_similarity(
            image, ours, data_range=1.0, channel_axis=2,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        psnr = peak_signal_noise_ratio(image, ours, data_range=1.0)
        assert scores["ssim"][index].item() == pytest.approx(ssim, abs=1e-4)
        assert scores["psnr"][index].item() == pytest.approx(psnr, abs=1e-4)
        assert scores["mse"][index].item() == pytest.approx(((image - ours) ** 2).mean(), rel=1e-5)


def test_perfect_and_known_errors(photos: torch.Tensor) -> None:
    perfect = reconstruction_scores(photos, photos)
    for name, value in (("mse", 0), ("psnr", 80), ("ssim", 1), ("fsim", 1)):
        torch.testing.assert_close(perfect[name], torch.full((3,), float(value)))
    grey = torch.full((1, 1, 32, 32), 0.5)
    scores = reconstruction_scores(grey + 0.1, grey)
    assert scores["mse"].item() == pytest.approx(0.01, rel=1e-4)
    assert scores["psnr"].item() == pytest.approx(20.0, abs=1e-2)


def test_structure_and_pixels_are_told_apart(photos: torch.Tensor) -> None:
    """A shift of brightness costs pixels, a blur of the same error costs structure."""
    brighter = photos * 0.9
    kernel = torch.ones(3, 1, 5, 5) / 25
    blurred = torch.nn.functional.conv2d(photos, kernel, padding=2, groups=3)
    error = (blurred - photos).square().mean().sqrt()
    scale = error / (brighter - photos).square().mean().sqrt()
    brighter = photos + (brighter - photos) * scale
    first = {k: v.mean().item() for k, v in reconstruction_scores(brighter, photos).items()}
    second = {k: v.mean().item() for k, v in reconstruction_scores(blurred, photos).items()}
    assert first["mse"] == pytest.approx(second["mse"], rel=0.02)
    assert first["ssim"] > second["ssim"] + 0.02
    assert first["fsim"] > second["fsim"] + 0.02


def test_images_are_scored_one_by_one_and_clipped(photos: torch.Tensor) -> None:
    predicted = photos + 0.4 * torch.randn(photos.shape, generator=torch.Generator().manual_seed(1))
    together = reconstruction_scores(predicted, photos)
    clipped = reconstruction_scores(predicted.clamp(0, 1), photos)
    for index in range(3):
        alone = reconstruction_scores(predicted[index, None], photos[index, None])
        for name in SCORES:
            assert together[name][index].item() == pytest.approx(alone[name].item(), rel=1e-4)
            assert together[name][index].item() == clipped[name][index].item()
            assert math.isfinite(together[name][index])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            (torch.rand(1, 3, 32, 32), torch.rand(1, 3, 16, 16)),
            ValueError,
            "reconstruction must have shape",
        ),
        ((torch.rand(2, 32, 32),) * 2, ValueError, "B >= 1, C >= 1, H >= 16"),
        ((torch.rand(1, 3, 8, 8),) * 2, ValueError, r"H >= 16, W >= 16\), got \(1, 3, 8, 8"),
        ((torch.rand(1, 3, 32, 32), 255 * torch.ones(1, 3, 32, 32)), ValueError, r"\[0, 1\]"),
        ((torch.zeros(1, 3, 32, 32).byte(),) * 2, TypeError, "floating"),
    ],
)
def test_bad_input(arguments: tuple, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        reconstruction_scores(*arguments)


def test_any_number_of_channels() -> None:
    """A channel repeated is as well reconstructed as the channel alone."""
    torch.manual_seed(0)
    images = torch.rand(2, 1, 32, 32)
    noisy = (images + 0.1 * torch.randn_like(images)).clamp(0, 1)
    one = reconstruction_scores(noisy, images)
    for channels in (2, 4, 12):
        many = reconstruction_scores(
            noisy.expand(2, channels, 32, 32), images.expand(2, channels, 32, 32)
        )
        for name, value in one.items():
            torch.testing.assert_close(many[name], value, msg=f"{name} of {channels} channels")


def test_what_is_nan_scores_nan_and_nothing_else_does() -> None:
    images = torch.rand(3, 3, 32, 32)
    predicted = images.clone()
    predicted[1, 0, 5, 5] = torch.nan
    for value in reconstruction_scores(predicted, images).values():
        assert value.isnan().tolist() == [False, True, False]
