# Masked autoencoder with DPP masks in lightly: one line, `wrap(...)`, on a stock module.
#
# The module below is lightly's own MAE example at a size that suits a CPU. Its training step
# knows nothing of DPPs.
#
#   pip install '.[lightly,analysis]'  # from a clone
#   python examples_lightly/mae_dpp.py                        # embedded photographs, a minute
#   python examples_lightly/mae_dpp.py --data path/to/images  # any image folder
#
# The paper's setting (MAE's: ViT-B/16, batches of 4096, 40 epochs of warm-up) on 8 GPUs:
#   python examples_lightly/mae_dpp.py --paper --data path/to/imagenet100/train \
#       --accelerator gpu --devices 8 --strategy ddp_find_unused_parameters_true
from __future__ import annotations

import argparse

import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.models import utils
from lightly.models.modules import (
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
)
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from lightly.transforms import MAETransform
from lightly.utils.scheduler import CosineWarmupScheduler
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import wrap
from mim_plugins.masking import DPPMasking, RandomMasking

VIT_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
VIT_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
PAPER = {"image_size": 224, "patch_size": 16, "min_scale": 0.2, "epochs": 300}
PAPER |= {"batch_size": 128, "accumulate": 4}
# Base learning rate 1.5e-4 for 256 images.
MODEL = {"shape": VIT_BASE, "decoder": (512, 8, 16), "norm_pix": True, "warmup_epochs": 40}
MODEL["rate"] = 1.5e-4 * 4096 / 256


def decay_groups(module: nn.Module) -> list[dict]:
    """Only matrices decay: no norms, biases, tokens and positions."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    still = [p for name, p in named if p.ndim < 2 or "token" in name or "pos_embed" in name]
    moving = [p for _, p in named if all(p is not other for other in still)]
    return [{"params": moving}, {"params": still, "weight_decay": 0.0}]


def adamw(module: pl.LightningModule, rate: float, warmup_epochs: int = 0):
    """AdamW. With a warm-up: a cosine after it, and only matrices decay, as MAE has it."""
    if not warmup_epochs:
        return torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    groups = decay_groups(module)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    steps = module.trainer.estimated_stepping_batches
    warmup = min(steps * warmup_epochs // module.trainer.max_epochs, steps - 1)
    scheduler = CosineWarmupScheduler(optimizer, warmup, steps, end_value=0.0)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class MAE(pl.LightningModule):
    def __init__(
        self,
        image_size: int,
        patch_size: int,
        shape: dict | None = None,
        decoder: tuple[int, int, int] = (64, 2, 4),
        norm_pix: bool = False,
        rate: float = 1e-3,
        warmup_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.norm_pix, self.rate, self.warmup_epochs = norm_pix, rate, warmup_epochs
        decoder_dim, decoder_depth, decoder_heads = decoder
        self.decoder_dim = decoder_dim
        shape = shape or {"embed_dim": 128, "depth": 4, "num_heads": 4}
        vit = VisionTransformer(img_size=image_size, patch_size=patch_size, **shape)
        self.mask_ratio = 0.75
        self.patch_size = patch_size
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.decoder_embed = nn.Linear(vit.embed_dim, decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            embed_dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            num_prefix_tokens=vit.num_prefix_tokens,
        )
        self.prediction_head = nn.Linear(decoder_dim, patch_size**2 * 3)
        self.decoder_embed.apply(init_weights)
        self.prediction_head.apply(init_weights)
        self.criterion = nn.MSELoss()

    def forward_decoder(self, encoded, idx_keep, idx_mask):
        tokens = encoded.new_zeros(len(encoded), self.sequence_length, self.decoder_dim)
        embedded = self.decoder_embed(encoded).type_as(tokens)
        tokens = utils.set_at_index(tokens, idx_keep, embedded)
        decoded = self.decoder(tokens, idx_mask=idx_mask)
        return self.prediction_head(utils.get_at_index(decoded, idx_mask))

    def training_step(self, batch, batch_idx):
        images = batch[0][0]  # one view
        idx_keep, idx_mask = utils.random_token_mask(
            size=(len(images), self.sequence_length),
            mask_ratio=self.mask_ratio,
            device=images.device,
        )
        encoded = self.backbone.encode(images=images, idx_keep=idx_keep)
        prediction = self.forward_decoder(encoded, idx_keep, idx_mask)
        # the class token has no patch
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        if self.norm_pix:
            target = utils.normalize_mean_var(target)
        loss = self.criterion(prediction, target)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return adamw(self, self.rate, self.warmup_epochs)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="image folder; default: embedded photographs")
    parser.add_argument("--paper", action="store_true", help="ViT-B/16, MAE's setting")
    parser.add_argument("--masking", choices=["dpp", "random"], default="dpp")
    parser.add_argument("--tau", type=float, default=0.5, help="1 = random, 0 = greedy")
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
    masking = DPPMasking(tau=args.tau) if args.masking == "dpp" else RandomMasking()
    wrap(model, masking=masking)  # the one line

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
