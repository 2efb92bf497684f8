"""How high the latents sit that each masking locates: the figure of docs/hierarchical.md.

    python benchmarks/abstraction_profile.py --out docs/images/abstraction_profile.png

Images of 256 x 256 pixels, patches of 8, a quadtree of 5 heights above them: a latent of
height h shows in a block of 2^h patches. Last line: the same quadtree, its blocks shifted
by one patch against the masking units.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from common import photo_batch

from mim_plugins.analysis import (
    LatentHierarchy,
    abstraction_profile,
    plot_abstraction_profile,
)
from mim_plugins.masking import (
    BlockMasking,
    ComplementaryMasking,
    DPPMasking,
    GridMasking,
    HierarchicalMasking,
    Masking,
    RandomMasking,
)

SIZE, PATCH_SIZE, UNITS = 256, 8, (8, 16, 32)
GRID = (SIZE // PATCH_SIZE, SIZE // PATCH_SIZE)


def complementary(mask_ratio: float, **kwargs: int) -> Masking:
    """As many masks as fit."""
    return ComplementaryMasking(int(1 / (1 - mask_ratio)), mask_ratio=mask_ratio, **kwargs)


def hierarchical(mask_unit: int, **kwargs: float) -> Masking:
    """Removes blocks of 4 x 4 masking units."""
    grid = (SIZE // mask_unit, SIZE // mask_unit)
    return HierarchicalMasking({"grid": grid}, level=2, mask_unit=mask_unit, **kwargs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="image file to write")
    parser.add_argument("--samples", type=int, default=512, help="masks per point")
    parser.add_argument("--images", type=int, default=60, help="photographs for DPP masks")
    args = parser.parse_args()
    print(f"torch {torch.__version__}")
    aligned = LatentHierarchy.quadtree(GRID)
    profile = partial(abstraction_profile, units=UNITS, samples=args.samples, patch_size=PATCH_SIZE)
    generator = torch.Generator().manual_seed(0)
    profiles = {
        name: profile(aligned, masking, generator=generator)
        for name, masking in {
            "random": RandomMasking,
            "grid": GridMasking,
            "block": BlockMasking,
            "complementary": complementary,
            "hierarchical, 4 x 4 units": hierarchical,
        }.items()
    }
    images = photo_batch(args.images, SIZE)
    profiles["DPP"] = profile(
        aligned, DPPMasking, samples=args.images, images=images, generator=generator
    )
    shifted = LatentHierarchy.quadtree(GRID, offset=1)
    profiles["random, shifted blocks"] = profile(shifted, RandomMasking, generator=generator)
    for name, result in profiles.items():
        for quantity in ("height", "lowest", "size"):
            print(f"\n{name}, {quantity} ({result.samples} draws)\n")
            print(result.table(quantity))
    plot_abstraction_profile(profiles).savefig(args.out, dpi=75)


if __name__ == "__main__":
    main()
