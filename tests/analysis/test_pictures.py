import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from mim_plugins.analysis import (
    History,
    effective_rank,
    mask_mosaic,
    singular_spectrum,
)


def test_spectra_are_drawn_as_given() -> None:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(20, 6, generator=generator) * scale for scale in (1, 2, 3)]
    ranks = [effective_rank(each) for each in features]
    spectra = [singular_spectrum(each) for each in features]
    history = History("spectra")
    for step, rank, spectrum in zip([0, 5, 10], ranks, spectra, strict=True):
        figures = {"effective_rank": rank, "singular_spectrum": spectrum.tolist()}
        history.add(figures, step, step, None)
    left, right = history.draw("iteration").axes
    assert np.allclose(left.lines[0].get_xydata(), list(zip([0, 5, 10], ranks, strict=True)))
    assert left.get_xlabel() == "iteration"
    assert len(right.lines) == 3
    for line, spectrum in zip(right.lines, spectra, strict=True):
        assert np.allclose(line.get_ydata(), spectrum)
    with pytest.raises(ValueError, match="entries must have a figure to plot"):
        History("spectra").draw()


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
        ((1, 8, 8), (2, 2, 2), None, "images"),
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


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_mosaic_of_any_channels(channels: int) -> None:
    images = torch.rand(1, channels, 96, 96)
    mosaic = mask_mosaic(images, torch.zeros(1, 2, 2), images)
    shown = images[0, :3] if channels >= 3 else images[0, :1].expand(3, -1, -1)
    expected = (shown * 255).round().to(torch.uint8).permute(1, 2, 0)
    for column in range(4):
        assert torch.equal(mosaic[:, 98 * column :][:, :96], expected)


def test_mosaic_of_other_statistics_and_of_nan() -> None:
    images = torch.rand(1, 3, 96, 96)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    stretched = mask_mosaic(images * 5000 - 1000, torch.zeros(1, 2, 2))
    plain = mask_mosaic(images, torch.zeros(1, 2, 2))
    # Where a value lies between two, the two scales may round it to either.
    torch.testing.assert_close(stretched, plain, atol=1, rtol=0)
    hidden = mask_mosaic(images, torch.ones(1, 2, 2), images * torch.nan)
    assert torch.equal(hidden[:, :96], stretched[:, :96])
    assert (hidden[:, 196:] <= 0).sum() > 2 * 96 * 96 * 3 - 1  # diverged: black


def test_history_is_drawn_and_written(tmp_path: Path) -> None:
    history = History("figures")
    for step, value in ((0, 3.0), (1, math.nan), (2, 4.0)):
        numbers = history.add({"rank": value, "curve": [1.0, 0.1]}, step, 10 * step, tmp_path)
        assert list(numbers) == ["rank"]
    rank, curve = history.draw("iteration").axes
    assert np.array_equal(rank.lines[0].get_ydata(), [3.0, np.nan, 4.0], equal_nan=True)
    assert (rank.get_xlabel(), rank.get_ylabel(), len(curve.lines)) == ("iteration", "rank", 3)
    lines = (tmp_path / "figures.jsonl").read_text().splitlines()
    assert [json.loads(line)["iter"] for line in lines] == [0, 10, 20]
    assert json.loads(lines[2]) == history.entries[2]
    history.add({"curve": [math.nan, math.nan]}, 3, 30, None)  # diverged: drawn all the same
    figure_to_png = history.draw().savefig
    figure_to_png(tmp_path / "figures.png")
    assert (tmp_path / "figures.png").stat().st_size > 1000
