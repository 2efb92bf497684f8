"""Small modules of the shape of lightly's own, on lightly's own blocks."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
)
from lightly.models.utils import random_block_mask
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class MAE(pl.LightningModule):
    """Masked autoencoder: calls ``utils.random_token_mask`` in its training step."""

    def __init__(self) -> None:
        super().__init__()
        vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=1, num_heads=2)
        self.mask_ratio = 0.75
        self.patch_size = 4
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.decoder_embed = nn.Linear(32, 32)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=64, embed_dim=32, depth=1, num_heads=2, num_prefix_tokens=1
        )
        self.prediction_head = nn.Linear(32, 4 * 4 * 3)
        self.criterion = nn.MSELoss()
        self.seen: list[Tensor] = []

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        images = batch[0][0]
        idx_keep, idx_mask = utils.random_token_mask(
            size=(len(images), self.sequence_length),
            mask_ratio=self.mask_ratio,
            device=images.device,
        )
        self.seen.append(idx_keep)
        encoded = self.decoder_embed(self.backbone.encode(images=images, idx_keep=idx_keep))
        tokens = encoded.new_zeros(len(images), self.sequence_length, 32)
        tokens = utils.set_at_index(tokens, idx_keep, encoded)
        decoded = self.decoder(tokens, idx_mask=idx_mask)
        prediction = self.prediction_head(utils.get_at_index(decoded, idx_mask))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        loss = self.criterion(prediction, target)
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class BlockMasked(pl.LightningModule):
    """Calls ``random_block_mask``, imported by name, for two concatenated views, as iBOT does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.seen: list[Tensor] = []

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        views = torch.cat(batch[0][:2])
        mask = random_block_mask(
            size=(len(views), 8, 8), device=views.device, min_num_masks_per_block=4
        )
        self.seen.append(mask)
        return self.linear(views.new_ones(1, 1)).sum()


class Unmasked(pl.LightningModule):
    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        return batch[0][0].sum()
