# MixMask in lightly's MoCo, BYOL, SimCLR and SimSiam: one line, `wrap(...)`, on a stock module.
#
# The modules are in the shape of lightly's own examples. MoCo's query view is mixed, its key view
# never, and the queue gets each step's keys once. BYOL's views are both mixed for the online
# network; the target network sees them unmixed and is updated once a step. SimSiam's are mixed on
# the side of the predictor. SimCLR's mixed views are each compared with the other one unmixed.
#
#   pip install '.[lightly,analysis]'  # from a clone
#   python examples_lightly/siamese_mixmask.py --algorithm moco          # embedded photographs
#   python examples_lightly/siamese_mixmask.py --algorithm byol --data path/to/images
#
# The paper's setting on CIFAR-100 (ResNet-18, 1000 epochs, batches of 512; table 8) on one GPU;
# MoCo stays lightly's, of one direction (that of both is in configs_mmpretrain/mixmask):
#   python examples_lightly/siamese_mixmask.py --paper --algorithm byol --data path/to/train
#
# On 8 GPUs of one node:
#   python examples_lightly/siamese_mixmask.py --algorithm moco --data ... --accelerator gpu \
#       --devices 8 --strategy ddp
from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from functools import partial

import pytorch_lightning as pl
import torch
import torchvision
from lightly.data import LightlyDataset
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.modules.heads import ProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import (
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
    MoCoV2Transform,
    SimCLRTransform,
    SimSiamTransform,
)
from torch import nn

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import wrap
from mim_plugins.mixing import SplitBatchNorm
from mim_plugins.mixmask import EraseMask, MixMask, UnMix

PAPER = {"image_size": 32, "epochs": 1000, "batch_size": 512}  # table 8, CIFAR-100


class Siamese(pl.LightningModule):
    """A ResNet-18; as published, with CIFAR's stem and the schedule of the algorithm."""

    def __init__(
        self, paper: bool = False, norm_layer: Callable[..., nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.paper = paper
        layers = list(torchvision.models.resnet18(norm_layer=norm_layer).children())[:-1]
        if paper:
            layers[0] = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            del layers[3]  # the pooling
        self.backbone = nn.Sequential(*layers, nn.Flatten())

    def factor(self, epoch: float, epochs: int) -> float:
        """Of the learning rate."""
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))

    def scheduled(self, optimizer):
        if not self.paper:
            return optimizer
        epochs, steps = self.trainer.max_epochs, self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            return self.factor(step * epochs / steps, epochs)

        # All but the first group keep their learning rate.
        factors = [factor, *[lambda step: 1.0] * (len(optimizer.param_groups) - 1)]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Stepped(Siamese):
    """W-MSE's schedule, of which SimCLR's and BYOL's settings in table 8 are."""

    def factor(self, epoch: float, epochs: int) -> float:
        warmup = 500 / 97  # iterations, of 97 batches of 512 in an epoch of CIFAR
        drops = (epoch >= epochs - 50) + (epoch >= epochs - 25)
        return min((epoch + 1 / 97) / warmup, 1.0) * (0.2**drops if epochs > 50 else 1.0)


class MoCo(Siamese):
    def __init__(self, paper: bool = False) -> None:
        # Statistics of eighths of a batch, as on 8 GPUs: MoCo's CIFAR demo on one.
        super().__init__(paper, partial(SplitBatchNorm, num_splits=8) if paper else None)
        self.projection_head = nn.Linear(512, 128) if paper else MoCoProjectionHead(512, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))

    def training_step(self, batch, batch_idx):
        x_query, x_key = batch[0]
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
        query = self.projection_head(self.backbone(x_query))
        key = self.projection_head_momentum(self.backbone_momentum(x_key)).detach()
        loss = self.criterion(query, key)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return self.scheduled(
            torch.optim.SGD(self.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
        )


class BYOL(Stepped):
    def __init__(self, paper: bool = False) -> None:
        super().__init__(paper)
        self.projection_head = BYOLProjectionHead(512, 1024, 64)
        self.prediction_head = BYOLPredictionHead(64, 1024, 64)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x):
        return self.prediction_head(self.projection_head(self.backbone(x)))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()

    def training_step(self, batch, batch_idx):
        x0, x1 = batch[0]
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
        p0, z0 = self.forward(x0), self.forward_momentum(x0)
        p1, z1 = self.forward(x1), self.forward_momentum(x1)
        loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return self.scheduled(torch.optim.Adam(self.parameters(), lr=0.003, weight_decay=1e-6))


class SimCLR(Stepped):
    def __init__(self, paper: bool = False) -> None:
        super().__init__(paper)
        self.projection_head = SimCLRProjectionHead(512, 1024, 64)
        self.criterion = NTXentLoss(temperature=0.5, gather_distributed=True)

    def training_step(self, batch, batch_idx):
        z0, z1 = self.projection_head(self.backbone(torch.cat(batch[0]))).chunk(2)
        loss = self.criterion(z0, z1)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return self.scheduled(torch.optim.Adam(self.parameters(), lr=0.003, weight_decay=1e-6))


class SimSiam(Siamese):
    def __init__(self, paper: bool = False) -> None:
        super().__init__(paper)
        if paper:  # two layers, of SimSiam's own widths on CIFAR
            norms = nn.BatchNorm1d(2048), nn.BatchNorm1d(128, affine=False)
            blocks = [(512, 2048, norms[0], nn.ReLU()), (2048, 128, norms[1], None)]
            self.projection_head = ProjectionHead(blocks)
            self.prediction_head = SimSiamPredictionHead(128, 32, 128)
        else:
            self.projection_head = SimSiamProjectionHead(512, 512, 128)
            self.prediction_head = SimSiamPredictionHead(128, 64, 128)
        self.criterion = NegativeCosineSimilarity()

    def factor(self, epoch: float, epochs: int) -> float:
        return min(epoch / 10, 1.0) * super().factor(max(epoch - 10, 0), max(epochs - 10, 1))

    def forward(self, x):
        z = self.projection_head(self.backbone(x))
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch, batch_idx):
        x0, x1 = batch[0]
        z0, p0 = self.forward(x0)
        z1, p1 = self.forward(x1)
        loss = 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        still = list(self.prediction_head.parameters()) if self.paper else []
        moving = [p for p in self.parameters() if all(p is not other for other in still)]
        groups = [{"params": group} for group in (moving, still) if group]
        return self.scheduled(torch.optim.SGD(groups, lr=0.03, momentum=0.9, weight_decay=5e-4))


def byol_transform(**views):
    return BYOLTransform(
        view_1_transform=BYOLView1Transform(**views),
        view_2_transform=BYOLView2Transform(**views),
    )


# CIFAR-100's views without blur: of MoCo's CIFAR demo, and of W-MSE for the others.
VIEWS = {"cj_bright": 0.4, "cj_contrast": 0.4, "cj_sat": 0.4, "cj_hue": 0.1, "gaussian_blur": 0.0}
VIEWS["normalize"] = {"mean": [0.5071, 0.4866, 0.4409], "std": [0.2673, 0.2564, 0.2762]}
DEMO = {**VIEWS, "min_scale": 0.08, "random_gray_scale": 0.2}
WMSE = {**VIEWS, "min_scale": 0.2, "random_gray_scale": 0.1}
ALGORITHMS = {
    "moco": (MoCo, MoCoV2Transform, DEMO),
    "byol": (BYOL, byol_transform, {**WMSE, "solarization_prob": 0.0}),
    "simclr": (SimCLR, SimCLRTransform, WMSE),
    "simsiam": (SimSiam, SimSiamTransform, WMSE),
}
MIXERS = {"mixmask": MixMask, "erase": EraseMask}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="moco")
    parser.add_argument("--data", help="image folder; default: embedded photographs")
    parser.add_argument("--paper", action="store_true", help="table 8 on CIFAR-100")
    parser.add_argument("--mixing", choices=[*MIXERS, "none"], default="mixmask")
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
    if args.paper:
        parser.set_defaults(**PAPER)
        args = parser.parse_args()

    pl.seed_everything(0)
    folder = args.data or write_photo_folder("data/photos") / "train"
    module, transform, published = ALGORITHMS[args.algorithm]
    views = published if args.paper else {"min_scale": 0.5}
    dataset = LightlyDataset(str(folder), transform=transform(input_size=args.image_size, **views))
    dataloader = torch.utils.data.DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,
    )

    model = module(args.paper)
    mixer = MIXERS.get(args.mixing)
    mixing = mixer and mixer(grid_size=args.grid_size)
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
