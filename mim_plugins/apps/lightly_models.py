"""Modules of lightly's own parts in the shape of its examples, for the self-test and ``show``."""

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
    """Masked autoencoder, as lightly's example, on a vision transformer of timm."""

    def __init__(
        self,
        vit: VisionTransformer,
        decoder_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        mask_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.patch_size = vit.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.decoder_embed = nn.Linear(vit.embed_dim, decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches, embed_dim=decoder_dim, depth=depth,
            num_heads=num_heads, mlp_ratio=mlp_ratio, num_prefix_tokens=vit.num_prefix_tokens,
        )  # fmt: skip
        self.prediction_head = nn.Linear(decoder_dim, 3 * self.patch_size**2)
        self.criterion = nn.MSELoss()

    def decode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's tokens ``(B, length, D)`` of masked images, and which were masked."""
        size = (len(images), self.sequence_length)
        idx_keep, idx_mask = utils.random_token_mask(
            size=size, mask_ratio=self.mask_ratio, device=images.device
        )
        encoded = self.decoder_embed(self.backbone.encode(images=images, idx_keep=idx_keep))
        tokens = encoded.new_zeros(*size, encoded.shape[2])
        tokens = utils.set_at_index(tokens, idx_keep, encoded)
        return self.decoder(tokens, idx_mask=idx_mask), idx_mask

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch[0][0]
        decoded, idx_mask = self.decode(images)
        prediction = self.prediction_head(utils.get_at_index(decoded, idx_mask))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        loss: Tensor = self.criterion(prediction, target)
        return loss


def mae(size: Size) -> MAE:
    vit = VisionTransformer(
        img_size=size.image, patch_size=size.patch, embed_dim=size.width, depth=size.depth,
        num_heads=size.heads, num_classes=0,
    )  # fmt: skip
    return MAE(vit, size.decoder_width, size.decoder_depth, size.decoder_width // 32)


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
