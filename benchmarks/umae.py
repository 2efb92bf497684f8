"""Cost of the uniformity term: a U-MAE training step relative to the same MAE step.

    python benchmarks/umae.py            # CPU size, and ViT-B with batch 256 where there is a GPU

Both steps are of one ``RegularizedMAE``, the term's weight being 0 (left out: the stock step)
or not. On a CPU memory is the peak resident size of a process of its own for each.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from common import machine, photo_batch, times
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

import mim_plugins.mmpretrain  # noqa: F401

SMALL = {"embed_dims": 192, "num_layers": 4, "num_heads": 3, "feedforward_channels": 768}


def training_step(device: str, batch: int) -> Callable[[float], None]:
    """A function that takes one optimiser step with this weight of the term."""
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    large = device == "cuda"
    size, patch, width = (224, 16, 768) if large else (64, 8, 192)
    model = MODELS.build(
        {
            "type": "RegularizedMAE",
            "backbone": {
                "type": "MAEViT",
                "arch": "b" if large else SMALL,
                "img_size": size,
                "patch_size": patch,
            },
            "neck": {
                "type": "MAEPretrainDecoder",
                "patch_size": patch,
                "num_patches": (size // patch) ** 2,
                "embed_dim": width,
                **({} if large else {"decoder_embed_dim": 96, "decoder_depth": 2}),
            },
            "head": {
                "type": "MAEPretrainHead",
                "norm_pix": True,
                "patch_size": patch,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"},
            },
            "regularizers": [{"type": "UniformityHead", "weight": 0.01}],
        }
    ).to(device)
    model.init_weights()
    images = photo_batch(batch, size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(weight: float) -> None:
        model.regularizers["uniformity"].weight = weight
        with torch.autocast(device, dtype=torch.bfloat16, enabled=large):
            loss = sum(model.loss(images, None).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_memory(device: str, batch: int, weight: float) -> int:
    """Bytes at the peak of three steps."""
    if device == "cpu":
        command = [sys.executable, __file__, "--batch", str(batch), "--peak-of", str(weight)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(printed.split()[-1])
    step = training_step(device, batch)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step(weight)
    return torch.cuda.max_memory_allocated()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--batch", type=int, help="default: 256 on a GPU, 64 on a CPU")
    parser.add_argument("--peak-of", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of is not None:
        step = training_step("cpu", args.batch)
        for _ in range(3):
            step(args.peak_of)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = args.batch or (256 if device == "cuda" else 64)
    step = training_step(device, batch)
    seconds = times({"MAE": lambda: step(0.0), "U-MAE": lambda: step(0.01)}, args.repeats)
    memory = {"MAE": peak_memory(device, batch, 0.0), "U-MAE": peak_memory(device, batch, 0.01)}
    what = "ViT-B/16, 224 px, bf16" if device == "cuda" else "ViT of 4 layers, width 192, 64 px"
    print(f"{machine()}\n\n{what}, batch {batch}, median of {args.repeats} steps in turn\n")
    print("| step | ms | ratio | peak memory (MiB) | ratio |\n|---|---|---|---|---|")
    for name, value in seconds.items():
        print(
            f"| {name} | {value * 1e3:.1f} | {value / seconds['MAE']:.3f} "
            f"| {memory[name] / 2**20:.0f} | {memory[name] / memory['MAE']:.3f} |"
        )
    if device == "cpu":
        print("\nGPU step: not measured (no CUDA device)")


if __name__ == "__main__":
    main()
