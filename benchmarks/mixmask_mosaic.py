"""What MixMask does to images, as in figure 3 of the paper.

python benchmarks/mixmask_mosaic.py --out docs/images/mixmask_mosaic.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from common import photo_batch

from mim_plugins.mixmask import EraseMask, MixMask, UnMix

MIXERS = {
    "MixMask, blocked": MixMask(mask="block", grid_size=8),
    "MixMask, discrete": MixMask(mask="random", grid_size=8),
    "MixMask, discrete 4 x 4": MixMask(mask="random", grid_size=4),
    "erased, blocked": EraseMask(mask="block", grid_size=8),
    "erased, discrete, noise": EraseMask(mask="random", grid_size=8, fill="noise"),
    "Un-Mix: MixUp": UnMix(prob_global=1.0),
    "Un-Mix: CutMix": UnMix(prob_global=0.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/mixmask_mosaic.png"))
    args = parser.parse_args()
    images = photo_batch(15)[[0, 3, 4, 7, 11, 13]]
    columns = {"image": images}
    for title, mixer in MIXERS.items():
        mix = mixer(images, generator=torch.Generator().manual_seed(2))
        columns[f"{title}\nshare of own {mix.lam:.2f}"] = mix.images
    figure, axes = plt.subplots(
        len(images),
        len(columns),
        figsize=(1.6 * len(columns), 1.6 * len(images) + 0.4),
        layout="constrained",
    )
    for column, (title, shown) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=8)
        for row, image in enumerate(shown):
            axes[row, column].imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
            axes[row, column].axis("off")
    figure.savefig(args.out, dpi=64)


if __name__ == "__main__":
    main()
