# MixMask in lightly's SimSiam: one line, `wrap(...)`, on a stock module.
#
# The module is lightly's own example. Both views are mixed on the side of the predictor; the
# side without gradient sees them unmixed.
#
#   pip install '.[lightly,analysis]'  # from a clone
#   python examples_lightly/simsiam_mixmask.py                        # embedded photographs
#   python examples_lightly/simsiam_mixmask.py --data path/to/images  # any image folder
#
# On 8 GPUs of one node:
#   python examples_lightly/simsiam_mixmask.py --data ... --accelerator gpu --devices 8 \
#       --strategy ddp
from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import SimSiamTransform
from torch import nn

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import wrap
from mim_plugins.mixmask import EraseMask, MixMask, UnMix


class SimSiam(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x):
        z = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch, batch_idx):
        x0, x1 = batch[0]
        z0, p0 = self.forward(x0)
        z1, p1 = self.forward(x1)
        loss = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="image folder; default: embedded photographs")
    parser.add_argument("--mixing", choices=["mixmask", "erase", "none"], default="mixmask")
    parser.add_argument("--unmix", action="store_true", help="Un-Mix beside it (table 2)")
    parser.add_argument("--grid-size", type=int, help="default: 2, 4, 8 for 32, 64, 224 pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", default="1")
    parser.add_argument("--strategy", default="auto")
    args = parser.parse_args()

    pl.seed_everything(0)
    folder = args.data or write_photo_folder("data/photos") / "train"
    transform = SimSiamTransform(input_size=args.image_size, min_scale=0.5)
    dataset = LightlyDataset(str(folder), transform=transform)
    dataloader = torch.utils.data.DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,
    )

    model = SimSiam()
    kinds = {"mixmask": MixMask, "erase": EraseMask}
    mixing = kinds[args.mixing](grid_size=args.grid_size) if args.mixing in kinds else None
    unmix = UnMix(prob_global=0.5) if args.unmix else None
    if mixing or unmix:
        wrap(model, mixing=mixing, unmix=unmix)  # the one line

    trainer = pl.Trainer(
        max_epochs=args.epochs,
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
