"""Masks from filtered random noise, which do not depend on the image (ColorMAE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from .._check import check_choice, check_positive
from .base import Grid, Masking

COLORS = ("red", "blue", "green", "purple")


class ColoredNoiseMasking(Masking):
    """Units are ranked by white noise from which a filter has removed frequencies.

    Hinojosa et al., "ColorMAE: Exploring data-independent masking strategies in Masked
    AutoEncoders", arXiv 2407.13036: with a Gaussian filter ``G_sigma`` of the
    noise W, red noise is ``G_sigma W`` (low frequencies: large blobs), blue noise
    ``W - G_sigma W`` (high: evenly spread), green noise ``G_sigma1 W - G_sigma2 W`` with
    ``sigma1 < sigma2`` (middle: blobs of one size), purple noise W without its green part
    (high and low). Written from the description; where the paper cuts its masks out of large
    precomputed noise, here every mask has noise of its own, filtered on the grid of units as
    if it were periodic, so that no border is special. Units of the largest noise are kept, as
    in the authors' code. The paper's widths are not known here; the defaults are our own.

    Args:
        color: ``"red"``, ``"blue"``, ``"green"`` or ``"purple"``. Default: ``"green"``, the
            paper's best.
        sigma: Width of the filter, for green and purple that of the narrower one, in units.
            Default: 1.
        sigma2: Width of green's and purple's wider filter. Default: twice ``sigma``.
        **settings: Those of :class:`Masking`.

    Example:
        >>> ColoredNoiseMasking(color="blue")(torch.rand(2, 3, 64, 64)).mask.sum(dim=1)
        tensor([12, 12])
    """

    depends_on_images = False

    def __init__(
        self,
        *,
        color: str = "green",
        sigma: float = 1.0,
        sigma2: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.color = check_choice("color", color, COLORS)
        self.sigma = check_positive("sigma", sigma)
        self.sigma2 = 2 * self.sigma if sigma2 is None else check_positive("sigma2", sigma2)
        if self.sigma2 <= self.sigma:
            raise ValueError(f"sigma2 must be larger than sigma={sigma}, got {sigma2}")

    def scores(
        self, images: Tensor, grid: Grid, num_keep: int, noise: Tensor, generator: Generator | None
    ) -> Tensor:
        rows, cols = grid
        white = torch.erfinv((2 * noise.float() - 1).clamp(-1 + 1e-6, 1 - 1e-6))  # normal, scaled
        fy = torch.fft.fftfreq(rows, device=noise.device)[:, None]
        fx = torch.fft.rfftfreq(cols, device=noise.device)
        square = fy**2 + fx**2

        def low(sigma: float) -> Tensor:  # transfer function of a Gaussian
            return torch.exp(-2 * (torch.pi * sigma) ** 2 * square)

        green = low(self.sigma) - low(self.sigma2)
        transfer = {
            "red": low(self.sigma),
            "blue": 1 - low(self.sigma),
            "green": green,
            "purple": 1 - green,
        }[self.color]
        spectrum = torch.fft.rfft2(white.view(-1, rows, cols)) * transfer
        return -torch.fft.irfft2(spectrum, s=grid).flatten(1)
