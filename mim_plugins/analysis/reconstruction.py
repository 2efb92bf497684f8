"""How close is a reconstruction to the image? MSE, PSNR, SSIM and FSIM (Kong et al., 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._tensor import check_shape
from .._versions import check_versions, importing

SCORES = ("mse", "psnr", "ssim", "fsim")
SMALLEST_IMAGE = 16  # pixels: SSIM's window is 11 x 11, FSIM's coarsest wavelet 48 long


@torch.no_grad()
def reconstruction_scores(reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Pixel-level and structural similarity of each reconstruction to its image, by piq.

    Kong et al., "Understanding Masked Autoencoders via Hierarchical Latent Variable
    Models", CVPR 2023, section 3.1 and figure 5. PSNR and MSE count pixels; SSIM (Wang et
    al., 2004) and FSIM (Zhang et al., 2011; its colour form) compare structure.

    Args:
        reconstruction: ``(B, C, H, W)`` floating. Values outside [0, 1] are clipped: they
            are no image. FSIM is its colour form for C = 3, and else the mean over channels.
        images: The originals, same shape, in [0, 1].

    Returns:
        ``mse`` (in units of the full range squared), ``psnr`` (dB; at most 80, a perfect
        reconstruction), ``ssim`` (at most 1) and ``fsim`` (about 0 to 1), each ``(B,)``
        float32; NaN where a reconstruction or image is NaN or infinite.

    Raises:
        ImportError: If piq is not installed.
        TypeError: If an argument is not floating.
        ValueError: If shapes differ or are not those of images, an image is smaller than
            16 pixels, or ``images`` leave [0, 1].

    Example:
        >>> images = torch.rand(2, 3, 32, 32)
        >>> reconstruction_scores(images, images)["ssim"]
        tensor([1., 1.])
    """
    with importing("reconstruction scores need piq"):
        import piq
    check_versions(piq, extra="analysis")
    for name, value in (("reconstruction", reconstruction), ("images", images)):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating, in [0, 1], got {value.dtype}")
    sides = (f"{side} >= {SMALLEST_IMAGE}" for side in "HW")
    check_shape("images", images, "B >= 1", "C >= 1", *sides)
    check_shape("reconstruction", reconstruction, *images.shape)
    lowest, highest = images.min().item(), images.max().item()
    if lowest < -1e-4 or highest > 1 + 1e-4:
        raise ValueError(
            f"images must be in [0, 1], got [{lowest:.3g}, {highest:.3g}]; undo the "
            "normalisation first"
        )
    # Sums over an image lose precision in float16.
    original = images.float().clamp(0, 1)
    predicted = reconstruction.float().clamp(0, 1)
    finite = (reconstruction.isfinite() & images.isfinite()).flatten(1).all(dim=1)
    predicted[~finite] = original[~finite] = 0.5  # piq looks at the whole batch
    colour = images.shape[1] == 3
    grey = [each if colour else each.flatten(0, 1)[:, None] for each in (predicted, original)]
    scores = {
        "mse": (predicted - original).square().flatten(1).mean(dim=1),
        "psnr": piq.psnr(predicted, original, data_range=1.0, reduction="none"),
        "ssim": piq.ssim(predicted, original, data_range=1.0, reduction="none"),
        "fsim": piq.fsim(*grey, data_range=1.0, reduction="none", chromatic=colour)
        .view(len(images), -1)
        .mean(dim=1),
    }
    return {name: torch.where(finite, score, torch.nan) for name, score in scores.items()}
