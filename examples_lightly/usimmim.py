# U-SimMIM in lightly: one line, `wrap(...)`, adds the uniformity term to a SimMIM module.
#
# lightly's SimMIM example as a LightningModule, with a class token, at a size that suits a
# CPU. The encoder sees mask tokens in place of the hidden patches; `token="mean"` would take
# the mean of the visible ones instead of the class token.
#
#   pip install '.[lightly,analysis]'  # from a clone
#   python examples_lightly/usimmim.py                        # embedded photographs
#   python examples_lightly/usimmim.py --data path/to/images  # any image folder
from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.transforms import MAETransform
from mae_dpp import VIT_BASE, adamw
from simmim_dpp import simmim_adamw
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import UniformityLoss, wrap
from mim_plugins.masking import RandomMasking

# Section 5.1; learning rate, schedule and masked units of 32 pixels are SimMIM's for ViT-B. Its
# relative position bias is not in timm's VisionTransformer.
PAPER = {"image_size": 224, "patch_size": 16, "min_scale": 0.67}
PAPER |= {"epochs": 200, "batch_size": 128, "weight": 1e-4}


class SimMIM(pl.LightningModule):
    def __init__(self, image_size: int, patch_size: int, paper: bool = False) -> None:
        super().__init__()
        shape = VIT_BASE if paper else {"embed_dim": 128, "depth": 4, "num_heads": 4}
        self.paper = paper
        vit = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            drop_path_rate=0.1 if paper else 0.0,
            **shape,
        )
        self.mask_ratio = 0.6
        self.patch_size = patch_size
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.decoder = nn.Linear(vit.embed_dim, patch_size**2 * 3)
        self.criterion = nn.L1Loss()

    def training_step(self, batch, batch_idx):
        images = batch[0][0]  # one view
        _, idx_mask = utils.random_token_mask(
            size=(len(images), self.sequence_length),
            mask_ratio=self.mask_ratio,
            device=images.device,
        )
        encoded = self.backbone.encode(images=images, idx_mask=idx_mask)
        prediction = self.decoder(utils.get_at_index(encoded, idx_mask))
        # the class token has no patch
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        loss = self.criterion(prediction, target)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        if not self.paper:
            return adamw(self, 1e-3)
        steps, epochs = self.trainer.estimated_stepping_batches, self.trainer.max_epochs
        optimizer, scheduler = simmim_adamw(self, 128, steps, epochs)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="image folder; default: embedded photographs")
    parser.add_argument("--paper", action="store_true", help="ViT-B/16, section 5.1 of U-MAE")
    parser.add_argument("--weight", type=float, default=0.01, help="lambda; 0 = SimMIM")
    parser.add_argument("--token", choices=["cls", "mean"], default="cls")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--min-scale", type=float, default=0.5, help="of crops, of the area")
    parser.add_argument("--patch-size", type=int, default=8)
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
        dataset, batch_size=args.batch_size, shuffle=True, drop_last=True, num_workers=1
    )

    model = SimMIM(args.image_size, args.patch_size, args.paper)
    regularizer = UniformityLoss(args.weight, token=args.token)
    masking = RandomMasking(mask_unit=32) if args.paper else None
    wrap(model, masking=masking, regularizers=[regularizer])  # the one line

    trainer = pl.Trainer(max_epochs=args.epochs, devices=1, log_every_n_steps=10)
    trainer.fit(model=model, train_dataloaders=dataloader)
    for name in ("train_loss", "loss_uniformity"):
        if name in trainer.callback_metrics:
            print(f"{name}: {trainer.callback_metrics[name]:.4f}")
    print(f"checkpoint: {trainer.checkpoint_callback.best_model_path}")


if __name__ == "__main__":
    main()
