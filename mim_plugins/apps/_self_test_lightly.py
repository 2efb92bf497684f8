"""The lightly modules of the self-test, of lightly's own parts in the shape of its examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

if TYPE_CHECKING:
    from .self_test import Size


class MAE(pl.LightningModule):
    """Masked autoencoder, as lightly's example."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=size.image, patch_size=size.patch, embed_dim=size.width, depth=size.depth,
            num_heads=size.heads, num_classes=0,
        )  # fmt: skip
        self.mask_ratio = 0.75
        self.patch_size = size.patch
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.decoder_embed = nn.Linear(size.width, size.decoder_width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=size.patches, embed_dim=size.decoder_width, depth=size.decoder_depth,
            num_heads=size.decoder_width // 32, num_prefix_tokens=1,
        )  # fmt: skip
        self.prediction_head = nn.Linear(size.decoder_width, 3 * size.patch**2)
        self.criterion = nn.MSELoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch[0][0]
        size = (len(images), self.sequence_length)
        idx_keep, idx_mask = utils.random_token_mask(
            size=size, mask_ratio=self.mask_ratio, device=images.device
        )
        encoded = self.decoder_embed(self.backbone.encode(images=images, idx_keep=idx_keep))
        tokens = encoded.new_zeros(*size, encoded.shape[2])
        tokens = utils.set_at_index(tokens, idx_keep, encoded)
        decoded = self.decoder(tokens, idx_mask=idx_mask)
        prediction = self.prediction_head(utils.get_at_index(decoded, idx_mask))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        loss: Tensor = self.criterion(prediction, target)
        return loss


class SimSiam(pl.LightningModule):
    """SimSiam, as lightly's example."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        if size.resnet == 50:
            layers, channels = list(torchvision.models.resnet50().children())[:-1], 2048
        else:
            channels = 8 * size.resnet_width
            layers = [nn.Conv2d(3, channels, 8, stride=8), nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, 3), nn.AdaptiveAvgPool2d(1)]
        self.backbone = nn.Sequential(*layers, nn.Flatten())
        self.projection_head = SimSiamProjectionHead(channels, size.hidden, size.hidden)
        self.prediction_head = SimSiamPredictionHead(size.hidden, size.hidden // 2, size.hidden)
        self.criterion = NegativeCosineSimilarity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z0, z1 = (self.projection_head(self.backbone(view)) for view in batch[0])
        p0, p1 = self.prediction_head(z0), self.prediction_head(z1)
        loss: Tensor = 0.5 * (self.criterion(z0.detach(), p1) + self.criterion(z1.detach(), p0))
        return loss
