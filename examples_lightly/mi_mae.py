# MI-MAE in lightly: one line, `wrap(...)`, on a stock masked autoencoder.
#
# Four masks per image with disjoint visible sets, and the information terms: latents of an
# image under different masks should agree, and say little else about what they have seen.
# The module is the one of mae_dpp.py, lightly's own MAE example at a size that suits a CPU. Its
# training step knows one mask per image and no terms. What the terms learn lies under
# `regularizers.` in the checkpoint; `--masks 1 --cross-weight 0 --input-weight 0` is the stock MAE.
#
#   pip install '.[lightly,analysis]'  # from a clone
#   python examples_lightly/mi_mae.py                        # embedded photographs, a minute
#   python examples_lightly/mi_mae.py --data path/to/images  # any image folder
#
# On 8 GPUs of one node:
#   python examples_lightly/mi_mae.py --data ... --accelerator gpu --devices 8 \
#       --strategy ddp_find_unused_parameters_true
from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.transforms import MAETransform
from mae_dpp import MAE, MODEL
from mae_dpp import PAPER as MAE_PAPER

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import MutualInformationLoss, wrap
from mim_plugins.masking import ComplementaryMasking, DPPMasking

PAPER = {**MAE_PAPER, "epochs": 400}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="image folder; default: embedded photographs")
    parser.add_argument("--paper", action="store_true", help="ViT-B/16, MAE's setting, 400 epochs")
    parser.add_argument("--masks", type=int, default=4, help="per image")
    parser.add_argument("--tau", type=float, default=1.0, help="of DPP masks; 1 = random")
    parser.add_argument("--cross-weight", type=float, default=0.1)
    parser.add_argument("--output-weight", type=float, default=0.0)
    parser.add_argument("--input-weight", type=float, default=0.001)
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
    dpp = DPPMasking(tau=args.tau)
    masking = ComplementaryMasking(args.masks, base=dpp)
    information = MutualInformationLoss(
        dim=model.backbone.vit.embed_dim,
        cross_weight=args.cross_weight,
        output_weight=args.output_weight,
        input_weight=args.input_weight,
        hidden_dim=128,
    )
    wrap(model, masking=masking, regularizers=[information])  # the one line

    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accumulate_grad_batches=args.accumulate,
        accelerator=args.accelerator,
        devices=args.devices,
        strategy=args.strategy,
        log_every_n_steps=10,
    )
    trainer.fit(model=model, train_dataloaders=dataloader)
    if trainer.is_global_zero:
        print(f"checkpoint: {trainer.checkpoint_callback.best_model_path}")


if __name__ == "__main__":
    main()
