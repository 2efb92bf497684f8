"""Mask graphs of a toy image set at every mask ratio: the figure of docs/u-mae.md.

    python benchmarks/mask_graph.py --out docs/images/mask_graph.png

32 images of 8 patches in two classes. A patch shows its class's symbol with probability
0.3, else one of two background symbols.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from mim_plugins.analysis import mask_tradeoff, plot_mask_tradeoff


def toy_images() -> tuple[Tensor, Tensor]:
    """``(32, 8)`` symbols and ``(32,)`` labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 2
    shows_object = torch.rand(32, 8, generator=generator) < 0.3
    background = torch.randint(2, 4, (32, 8), generator=generator)
    return torch.where(shows_object, labels[:, None], background), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="image file to write")
    parser.add_argument("--dim", type=int, default=8, help="k, feature dimensions")
    args = parser.parse_args()
    print(f"torch {torch.__version__}")
    images, labels = toy_images()
    sweeps = {
        f"views {name} positions": mask_tradeoff(images, labels, args.dim, positions)
        for name, positions in (("without", False), ("with", True))
    }
    for name, sweep in sweeps.items():
        print(name)
        for key, values in vars(sweep).items():
            print(f"  {key:20}", " ".join(f"{value:9.4f}" for value in values.tolist()))
    plot_mask_tradeoff(sweeps).savefig(args.out, dpi=75)


if __name__ == "__main__":
    main()
