"""One MI-MAE step with M masks against M stock MAE steps on the same images.

    python benchmarks/mi_mae.py                                # ViT-B, 8 images; minutes
    python benchmarks/mi_mae.py --batch 128 --amp --arch base  # on a GPU

Both do the whole step: zero gradients, forward, backward, AdamW as in the stock config. Timed
in turn; memory is the peak of the process (CPU: a process of its own per row) or of the GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable

import torch
from common import machine, photo_batch, times

ROWS = ("stock, M steps", "M masks, one pass", "M masks, DPP", "MI-MAE, all terms")


def build(row: str, args: argparse.Namespace) -> torch.nn.Module:
    """A stock MAE, or ours with M complementary masks, of ``args.arch``."""
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    import mim_plugins.mmpretrain  # noqa: F401

    init_default_scope("mmpretrain")
    MMLogger.get_current_instance().setLevel("ERROR")  # init_weights() lists all parameters
    torch.manual_seed(0)
    backbone: dict = {"type": "MAEViT", "arch": args.arch, "patch_size": 16}
    algorithm: dict = {"type": "MAE"}
    if row != ROWS[0]:
        masking: dict = {"type": "ComplementaryMasking", "num_masks": args.masks}
        if "DPP" in row:
            masking["base"] = {"type": "DPPMasking"}
        backbone.update(type="MaskedMAEViT", masking=masking)
        weight = float("terms" in row)
        algorithm = {"type": "MIMAE", "cross_weight": 0.1 * weight, "input_weight": 1e-3 * weight}
        algorithm["output_weight"] = 0.1 * weight
    model = MODELS.build(
        {
            **algorithm,
            "backbone": backbone,
            "neck": {
                "type": "MAEPretrainDecoder",
                "embed_dim": {"base": 768, "large": 1024}[args.arch],
                "decoder_depth": 8,
                "decoder_embed_dim": 512,
                "decoder_num_heads": 16,
            },
            "head": {
                "type": "MAEPretrainHead",
                "norm_pix": True,
                "patch_size": 16,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"},
            },
        }
    )
    model.init_weights()
    return model.to(args.device)


def stepper(row: str, args: argparse.Namespace) -> Callable[[], None]:
    model = build(row, args)
    images = photo_batch(args.batch).to(args.device)
    images = (images - images.mean()) / images.std()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    repeats = args.masks if row == ROWS[0] else 1

    def step() -> None:
        for _ in range(repeats):
            optimizer.zero_grad()
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.amp):
                loss, _ = model.parse_losses(model.loss(images, None))
            loss.backward()
            optimizer.step()

    return step


def peak(row: str, args: argparse.Namespace, queue: multiprocessing.Queue) -> None:
    """Peak memory in GiB of two steps, in a process of its own."""
    step = stepper(row, args)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step()
    if args.device == "cuda":
        queue.put(torch.cuda.max_memory_allocated() / 2**30)
    else:
        queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", choices=["base", "large"], default="base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--masks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    print(f"{machine()}; ViT {args.arch}, {args.batch} images of 224 pixels, M = {args.masks}")
    memory = {}
    context = multiprocessing.get_context("spawn")
    for row in ROWS:
        queue = context.Queue()
        process = context.Process(target=peak, args=(row, args, queue))
        process.start()
        memory[row] = queue.get()
        process.join()
        time.sleep(0.5)
    taken = times({row: stepper(row, args) for row in ROWS}, args.repeats)
    print("| step | seconds | ratio | peak memory (GiB) |\n|---|---|---|---|")
    for row in ROWS:
        ratio = taken[row] / taken[ROWS[0]]
        print(f"| {row} | {taken[row]:.3f} | {ratio:.2f} | {memory[row]:.1f} |")


if __name__ == "__main__":
    main()
