# U-MAE in lightly: one line, `wrap(...)`, adds the uniformity term to a stock MAE module.
#
# The module is the one of mae_dpp.py, lightly's own MAE example at a size that suits a CPU.
# Loss, uniformity term and effective rank of the features are logged; compare `--weight 0`,
# which is the stock module bit for bit.
#
#   pip install '.[lightly,analysis]'  # from a clone
#   python examples_lightly/umae.py                        # embedded photographs, a minute
#   python examples_lightly/umae.py --data path/to/images  # any image folder
#   python examples_lightly/umae.py --masking dpp          # with DPP masks as well
#
# The paper's setting on CIFAR-10 (ViT-Tiny, 2000 epochs, batches of 4096) on one GPU:
#   python examples_lightly/umae.py --paper --data path/to/cifar10/train --accelerator gpu
#
# On 8 GPUs of one node (the term then takes the pairs of the global batch):
#   python examples_lightly/umae.py --data ... --accelerator gpu --devices 8 \
#       --strategy ddp_find_unused_parameters_true
from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.transforms import MAETransform
from mae_dpp import MAE, VIT_TINY
from mae_dpp import MODEL as MAE_MODEL

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import EffectiveRank, UniformityLoss, wrap
from mim_plugins.masking import DPPMasking

# Section 5.1 and appendix B.3; patch size and decoder are ours.
PAPER = {"image_size": 32, "patch_size": 4, "min_scale": 0.2}
PAPER |= {"epochs": 2000, "batch_size": 4096}
MODEL = {**MAE_MODEL, "shape": VIT_TINY, "decoder": (192, 4, 3)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="image folder; default: embedded photographs")
    parser.add_argument("--paper", action="store_true", help="ViT-Tiny, the paper's on CIFAR-10")
    parser.add_argument("--weight", type=float, default=0.01, help="lambda; 0 = MAE")
    parser.add_argument("--masking", choices=["dpp", "random"], default="random")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="per device")
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--min-scale", type=float, default=0.5, help="of crops, of the area")
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", default="1")
    parser.add_argument("--strategy", default="auto")
    args = parser.parse_args()
    if args.paper:
        parser.set_defaults(**PAPER)
        args = parser.parse_args()

    pl.seed_everything(0)
    folder = args.data or write_photo_folder("data/photos") / "train"
    dataset = LightlyDataset(
        str(folder),
        transform=MAETransform(input_size=args.image_size, min_scale=args.min_scale),
    )
    dataloader = torch.utils.data.DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,
    )

    model = MAE(args.image_size, args.patch_size, **(MODEL if args.paper else {}))
    wrap(
        model,
        masking=DPPMasking() if args.masking == "dpp" else None,
        regularizers=[UniformityLoss(weight=args.weight)],
    )  # the one line

    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accumulate_grad_batches=args.accumulate,
        accelerator=args.accelerator,
        devices=args.devices,
        strategy=args.strategy,
        log_every_n_steps=10,
        callbacks=[EffectiveRank()],
    )
    trainer.fit(model=model, train_dataloaders=dataloader)
    if trainer.is_global_zero:
        for name in ("train_loss", "loss_uniformity"):
            if name in trainer.callback_metrics:
                print(f"{name}: {trainer.callback_metrics[name]:.4f}")
        print(f"checkpoint: {trainer.checkpoint_callback.best_model_path}")


if __name__ == "__main__":
    main()
