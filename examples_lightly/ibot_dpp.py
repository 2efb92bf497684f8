# iBOT with DPP masks in lightly: one line, `wrap(...)`, on a stock-shaped module.
#
# As in DPPMask (table 8) random or DPP tokens take the place of iBOT's blocks: half of the
# global views lose 70 +- 5 % of their patches each.
#
#   pip install '.[lightly,analysis]'  # from a clone
#   python examples_lightly/ibot_dpp.py                        # embedded photographs, CPU size
#   python examples_lightly/ibot_dpp.py --data path/to/images  # any image folder
#
# The paper's setting (ViT-S/16, 100 epochs, table 8; what it leaves open is iBOT's) on 8 GPUs of
# one node; under SLURM add
# --num-nodes and start it with srun, as any Lightning script:
#   python examples_lightly/ibot_dpp.py --paper --data path/to/imagenet100/train \
#       --accelerator gpu --devices 8 --strategy ddp_find_unused_parameters_true
from __future__ import annotations

import argparse
import copy

import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss, IBOTPatchLoss
from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM
from lightly.models.utils import random_block_mask, update_drop_path_rate, update_momentum
from lightly.transforms import IBOTTransform
from lightly.utils.scheduler import (
    CosineWarmupScheduler,
    cosine_schedule,
    linear_warmup_schedule,
)
from timm.models.vision_transformer import VisionTransformer

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import wrap
from mim_plugins.masking import DPPMasking, RandomMasking


class IBOT(pl.LightningModule):
    def __init__(self, vit: VisionTransformer, output_dim: int, images: int | None = None) -> None:
        """``images``: of a batch on one device, for iBOT's own schedules."""
        super().__init__()
        self.images = images
        self.student_backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.teacher_backbone = copy.deepcopy(self.student_backbone)
        head = {"input_dim": vit.embed_dim, "output_dim": output_dim}
        update_drop_path_rate(self.teacher_backbone.vit, drop_path_rate=0.0)
        if images:
            head["freeze_last_layer"] = 1  # epoch
        self.student_head = DINOProjectionHead(**head, norm_last_layer=False)
        self.teacher_head = DINOProjectionHead(**head)
        for module in (self.teacher_backbone, self.teacher_head):
            module.requires_grad_(False)
        self.cls_criterion = DINOLoss(output_dim=output_dim, teacher_temp=0.07)
        self.patch_criterion = IBOTPatchLoss(output_dim=output_dim, teacher_temp=0.07)

    def training_step(self, batch, batch_idx):
        views = batch[0]
        global_views, local_views = torch.cat(views[:2]), torch.cat(views[2:])
        rows, cols = self.teacher_backbone.vit.patch_embed.grid_size
        patch_mask = random_block_mask(
            size=(len(global_views), rows, cols), device=global_views.device
        )
        mask = patch_mask.new_zeros(len(global_views), self.teacher_backbone.sequence_length)
        mask[:, 1:] = patch_mask.flatten(start_dim=1)  # never the class token

        steps = self.trainer.estimated_stepping_batches
        momentum = cosine_schedule(self.global_step, steps, 0.996, 1.0)
        update_momentum(self.student_backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.student_head, self.teacher_head, m=momentum)
        with torch.no_grad():
            features = self.teacher_backbone.encode(global_views)
            teacher_cls = self.teacher_head(features[:, 0])
            teacher_patches = self.teacher_head(features[mask])
        features = self.student_backbone.encode(global_views, mask=mask)
        student_patches = self.student_head(features[mask])
        local = self.student_backbone.encode(local_views)[:, 0]
        student_cls = self.student_head(torch.cat([features[:, 0], local]))

        warmup_epochs = min(30, self.trainer.max_epochs // 3)
        teacher_temp = linear_warmup_schedule(
            step=self.global_step,
            warmup_steps=max(1, steps * warmup_epochs // self.trainer.max_epochs),
            start_value=0.04,
            end_value=0.07,
        )
        cls_loss = self.cls_criterion(
            teacher_out=teacher_cls.chunk(2),
            student_out=student_cls.chunk(len(views)),
            teacher_temp=teacher_temp,
        )
        patch_loss = self.patch_criterion(
            teacher_out=teacher_patches,
            student_out=student_patches,
            mask=patch_mask,
            teacher_temp=teacher_temp,
        )
        self.log_dict(
            {"cls_loss": cls_loss, "patch_loss": patch_loss}, prog_bar=True, sync_dist=True
        )
        return cls_loss + patch_loss

    def configure_optimizers(self):
        if self.images is None:
            return torch.optim.AdamW(self.parameters(), lr=5e-4, weight_decay=0.04)
        # 5e-4 for 256 images, 10 epochs of warm-up, cosine to 1e-6. Vectors do not decay.
        rate = 5e-4 * self.images * self.trainer.world_size / 256
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.04)
        steps = self.trainer.estimated_stepping_batches
        warmup = min(steps * 10 // self.trainer.max_epochs, steps - 1)
        scheduler = CosineWarmupScheduler(optimizer, warmup, steps, end_value=1e-6 / rate)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_after_backward(self):
        self.student_head.cancel_last_layer_gradients(self.current_epoch)

    def on_train_batch_start(self, batch, batch_idx):
        if self.images is not None:  # weight decay rises from 0.04 to 0.4 by a cosine
            steps = self.trainer.estimated_stepping_batches
            decay = cosine_schedule(self.global_step, steps, 0.04, 0.4)
            self.optimizers().param_groups[0]["weight_decay"] = decay


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="image folder; default: embedded photographs")
    parser.add_argument("--paper", action="store_true", help="ViT-S/16, table 8 of DPPMask")
    parser.add_argument("--masking", choices=["dpp", "random"], default="dpp")
    parser.add_argument("--tau", type=float, default=0.5, help="1 = random, 0 = greedy")
    parser.add_argument("--epochs", type=int, help="default: 100 with --paper, else 3")
    parser.add_argument("--batch-size", type=int, default=32, help="per device")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--devices", default="1")
    parser.add_argument("--num-nodes", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    args = parser.parse_args()

    pl.seed_everything(0)
    if args.paper:
        size, patch_size, output_dim, local = 224, 16, 8192, (96, 10)
        shape = {"embed_dim": 384, "depth": 12, "num_heads": 6, "drop_path_rate": 0.1}
    else:
        size, patch_size, output_dim, local = 64, 8, 512, (32, 4)
        shape = {"embed_dim": 128, "depth": 4, "num_heads": 4}
    transform = IBOTTransform(
        global_crop_size=size,
        global_crop_scale=(0.25, 1.0),
        local_crop_size=local[0],
        local_crop_scale=(0.05, 0.25),
        n_local_views=local[1],
    )
    folder = args.data or write_photo_folder("data/photos") / "train"
    dataloader = torch.utils.data.DataLoader(
        LightlyDataset(str(folder), transform=transform),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,
    )

    vit = VisionTransformer(
        img_size=size, patch_size=patch_size, dynamic_img_size=True, init_values=1e-5, **shape
    )
    model = IBOT(vit, output_dim, args.batch_size if args.paper else None)
    if args.masking == "dpp":
        masking = DPPMasking(mask_ratio=0.7, tau=args.tau)
    else:
        masking = RandomMasking(mask_ratio=0.7)
    wrap(model, masking=masking, mask_ratio_var=0.05)  # the one line

    trainer = pl.Trainer(
        max_epochs=args.epochs or (100 if args.paper else 3),
        accelerator=args.accelerator,
        devices=args.devices,
        num_nodes=args.num_nodes,
        strategy=args.strategy,
        gradient_clip_val=3.0,
        log_every_n_steps=10,
    )
    trainer.fit(model=model, train_dataloaders=dataloader)
    if trainer.is_global_zero:
        print(f"checkpoint: {trainer.checkpoint_callback.best_model_path}")


if __name__ == "__main__":
    main()
