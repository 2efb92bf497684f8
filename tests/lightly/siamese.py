"""Siamese modules of the shape of lightly's own examples, on lightly's own blocks, small."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import (
    batch_shuffle,
    batch_unshuffle,
    deactivate_requires_grad,
    update_momentum,
)
from torch import Tensor, nn


def backbone() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
    )


class Siamese(pl.LightningModule):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class MoCo(Siamese):
    """With batch shuffling, as lightly's benchmark; keys without gradient by ``no_grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection_head = MoCoProjectionHead(32, 16, 8)
        self.key_backbone = copy.deepcopy(self.backbone)
        self.key_projection_head = copy.deepcopy(self.projection_head)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(20, 8))

    def query(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    @torch.no_grad()
    def key(self, x: Tensor) -> Tensor:
        x, shuffle = batch_shuffle(x)
        key = self.key_projection_head(self.key_backbone(x).flatten(start_dim=1))
        return batch_unshuffle(key, shuffle)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        views = batch[0]
        query = self.query(views[1])
        update_momentum(self.backbone, self.key_backbone, m=0.9)
        update_momentum(self.projection_head, self.key_projection_head, m=0.9)
        loss = self.criterion(query, self.key(views[0]))
        self.log("train_loss", loss)
        return loss


class BYOL(Siamese):
    """Keys without gradient by ``requires_grad``; criterion called with the key first."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection_head = BYOLProjectionHead(32, 16, 8)
        self.prediction_head = BYOLPredictionHead(8, 16, 8)
        self.teacher = nn.ModuleDict(
            {"backbone": copy.deepcopy(self.backbone), "head": copy.deepcopy(self.projection_head)}
        )
        deactivate_requires_grad(self.teacher)
        self.criterion = NegativeCosineSimilarity()

    def query(self, x: Tensor) -> Tensor:
        features = self.backbone(x).flatten(start_dim=1)
        return self.prediction_head(self.projection_head(features))

    def key(self, x: Tensor) -> Tensor:
        return self.teacher["head"](self.teacher["backbone"](x).flatten(start_dim=1)).detach()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        update_momentum(self.backbone, self.teacher["backbone"], m=0.9)
        update_momentum(self.projection_head, self.teacher["head"], m=0.9)
        x0, x1 = batch[0]
        loss_0 = 2 * self.criterion(self.key(x0), self.query(x1))
        loss_1 = 2 * self.criterion(x0=self.key(x1), x1=self.query(x0))
        return {"loss": loss_0 + loss_1, "other": 1}


class SimCLR(Siamese):
    """Both views in one pass, as in lightly's benchmark."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection_head = SimCLRProjectionHead(32, 16, 8)
        self.criterion = NTXentLoss(temperature=0.3)

    def query(self, x: Tensor) -> Tensor:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z0, z1 = self.query(torch.cat(batch[0])).chunk(2)
        return self.criterion(z0, z1)


class SimSiam(Siamese):
    """lightly's example; one encoder for queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection_head = SimSiamProjectionHead(32, 16, 8)
        self.prediction_head = SimSiamPredictionHead(8, 4, 8)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x0, x1 = batch[0]
        z0, p0 = self.forward(x0)
        z1, p1 = self.forward(x1)
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))
