# SimMIM with DPP masks in a plain PyTorch loop: one function call exchanged.
#
# Where lightly's own SimMIM example calls utils.random_token_mask(size=...), this calls
# dpp_token_mask(images, size=...). Everything else is lightly's.
#
#   pip install '.[lightly,analysis]'  # from a clone
#   python examples_lightly/simmim_dpp.py                        # embedded photographs
#   python examples_lightly/simmim_dpp.py --data path/to/images  # any image folder
from __future__ import annotations

import argparse

import torch
from lightly.data import LightlyDataset
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.transforms import MAETransform
from mae_dpp import VIT_BASE, decay_groups
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from tqdm import tqdm

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import dpp_token_mask

# SimMIM's own setting for ViT-B. Its relative position bias is not in timm's VisionTransformer.
PAPER = {"image_size": 224, "patch_size": 16, "min_scale": 0.67, "epochs": 800, "batch_size": 512}


def simmim_adamw(module: nn.Module, batch_size: int, steps: int, epochs: int):
    """SimMIM's optimiser and its schedule by steps: 1e-4 for 512 images, warm-up, x 0.1."""
    optimizer = torch.optim.AdamW(
        decay_groups(module), lr=1e-4 * batch_size / 512, betas=(0.9, 0.999), weight_decay=0.05
    )
    warmup = max(steps * 10 // epochs, 1)

    def factor(step: int) -> float:
        """Ten epochs of warm-up from 5e-7 / 1e-4, then x 0.1 after 7/8 of the epochs."""
        share = min(step / warmup, 1.0)
        return (5e-3 + (1 - 5e-3) * share) * (0.1 if step >= steps * 7 // 8 else 1.0)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class SimMIM(nn.Module):
    def __init__(self, image_size: int, patch_size: int, tau: float, paper: bool) -> None:
        super().__init__()
        shape = VIT_BASE if paper else {"embed_dim": 128, "depth": 4, "num_heads": 4}
        vit = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            drop_path_rate=0.1 if paper else 0.0,
            **shape,
        )
        self.mask_ratio = 0.6 if paper else 0.75
        self.mask_unit = 32 if paper else patch_size
        self.patch_size = patch_size
        self.tau = tau
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.decoder = nn.Linear(vit.embed_dim, patch_size**2 * 3)

    def forward(self, images):
        _, idx_mask = dpp_token_mask(
            images,  # the only change
            size=(len(images), self.sequence_length),
            mask_ratio=self.mask_ratio,
            tau=self.tau,
            mask_unit=self.mask_unit,
        )
        # SimMIM's encoder sees mask tokens in place of the hidden patches.
        encoded = self.backbone.encode(images=images, idx_mask=idx_mask)
        prediction = self.decoder(utils.get_at_index(encoded, idx_mask))
        # the class token has no patch
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        return prediction, target


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="image folder; default: embedded photographs")
    parser.add_argument("--paper", action="store_true", help="ViT-B/16, SimMIM's setting")
    parser.add_argument("--tau", type=float, default=0.5, help="1 = random, 0 = greedy")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--min-scale", type=float, default=0.5, help="of crops, of the area")
    parser.add_argument("--patch-size", type=int, default=8)
    args = parser.parse_args()
    if args.paper:
        parser.set_defaults(**PAPER)
        args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = args.data or write_photo_folder("data/photos") / "train"
    dataset = LightlyDataset(
        str(folder),
        transform=MAETransform(input_size=args.image_size, min_scale=args.min_scale),
    )
    dataloader = torch.utils.data.DataLoader(
        dataset, batch_size=args.batch_size, shuffle=True, drop_last=True, num_workers=1
    )
    model = SimMIM(args.image_size, args.patch_size, args.tau, args.paper).to(device)
    criterion = nn.L1Loss()
    scheduler = None
    if args.paper:
        steps = len(dataloader) * args.epochs
        optimizer, scheduler = simmim_adamw(model, args.batch_size, steps, args.epochs)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    for epoch in range(args.epochs):
        total = 0.0
        for views, *_ in tqdm(dataloader, desc=f"epoch {epoch}"):
            prediction, target = model(views[0].to(device))
            loss = criterion(prediction, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if scheduler:
                scheduler.step()
            total += loss.item()
        print(f"epoch {epoch}, loss {total / len(dataloader):.4f}")
    torch.save(model.backbone.state_dict(), "simmim_dpp_backbone.pt")
    print("backbone: simmim_dpp_backbone.pt")


if __name__ == "__main__":
    main()
