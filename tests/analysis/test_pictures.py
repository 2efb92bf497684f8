import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from mim_plugins.analysis import effective_rank, mask_mosaic, plot_spectra, singular_spectrum


def test_spectra_are_drawn_as_given() -> None:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(20, 6, generator=generator) * scale for scale in (1, 2, 3)]
    ranks = [effective_rank(each) for each in features]
    spectra = [singular_spectrum(each) for each in features]
    left, right = plot_spectra([0, 5, 10], ranks, spectra, unit="iteration").axes
    assert np.allclose(left.lines[0].get_xydata(), list(zip([0, 5, 10], ranks, strict=True)))
    assert left.get_xlabel() == "iteration"
    assert len(right.lines) == 3
    for line, spectrum in zip(right.lines, spectra, strict=True):
        assert np.allclose(line.get_ydata(), spectrum)
    for arguments in (([], [], []), ([1], [1.0], []), ([1, 2], ranks[:1], spectra[:1])):
        with pytest.raises(ValueError, match="equally many"):
            plot_spectra(*arguments)


def test_mosaic_of_a_rectangle() -> None:
    images = torch.rand(2, 3, 96, 192)
    mask = torch.zeros(2, 3, 6)  # 32 x 32 pixels each
    mask[0, 1, 2] = mask[1, 2, 5] = 1
    predicted = torch.rand(2, 3, 96, 192) * 3 - 1
    mosaic = mask_mosaic(images, mask, predicted)
    assert mosaic.dtype == torch.uint8
    assert mosaic.shape == (2 * 96 + 2, 4 * 192 + 6, 3)
    expected = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(mosaic[:96, :192], expected[0])
    assert torch.equal(mosaic[98:, :192], expected[1])
    masked = mosaic[:96, 194:386]
    hidden = torch.zeros(96, 192, dtype=torch.bool)
    hidden[32:64, 64:96] = True
    assert (masked[hidden] == 128).all()
    assert torch.equal(masked[~hidden], expected[0][~hidden])
    clipped = (predicted.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(mosaic[98:, 582:], clipped[1])
    assert torch.equal(mosaic[98:, 388:580][64:, 160:], clipped[1][64:, 160:])
    assert (mosaic[96:98] == 255).all()
    assert mask_mosaic(images, mask).shape == (194, 386, 3)
    small = mask_mosaic(images[:, :, :8, :8], mask[:, :2, :2])
    assert small.shape == (194, 194, 3)  # enlarged 12 times


@pytest.mark.parametrize(
    ("images", "mask", "predicted", "named"),
    [
        ((2, 1, 8, 8), (2, 2, 2), None, "images"),
        ((2, 3, 8, 8), (1, 2, 2), None, "mask"),
        ((2, 3, 8, 8), (2, 4), None, "mask"),
        ((2, 3, 8, 8), (2, 2, 2), (2, 3, 8, 4), "reconstruction"),
    ],
)
def test_wrong_shapes_are_named(
    images: tuple, mask: tuple, predicted: tuple | None, named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named} must have"):
        mask_mosaic(torch.rand(images), torch.zeros(mask), predicted and torch.rand(predicted))
