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
from mae_dpp import VIT_BASE
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from tqdm import tqdm

from mim_plugins.apps.photos import write_photo_folder
from mim_plugins.lightly import dpp_token_mask

# SimMIM's own setting for ViT-B: mask ratio 0.6, 1e-4 for 512 images.
PAPER = {"image_size": 224, "patch_size": 16, "epochs": 800, "batch_size": 512}


class SimMIM(nn.Module):
    def __init__(self, image_size: int, patch_size: int, tau: float, paper: bool) -> None:
        super().__init__()
        shape = VIT_BASE if paper else {"embed_dim": 128, "depth": 4, "num_heads": 4}
        vit = VisionTransformer(img_size=image_size, patch_size=patch_size, **shape)
        self.mask_ratio = 0.6 if paper else 0.75
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
    parser.add_argument("--patch-size", type=int, default=8)
    args = parser.parse_args()
    if args.paper:
        parser.set_defaults(**PAPER)
        args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = args.data or write_photo_folder("data/photos") / "train"
    dataset = LightlyDataset(
        str(folder), transform=MAETransform(input_size=args.image_size, min_scale=0.5)
    )
    dataloader = torch.utils.data.DataLoader(
        dataset, batch_size=args.batch_size, shuffle=True, drop_last=True, num_workers=1
    )
    model = SimMIM(args.image_size, args.patch_size, args.tau, args.paper).to(device)
    criterion = nn.L1Loss()
    rate = 1e-4 if args.paper else 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)

    for epoch in range(args.epochs):
        if args.paper:  # 10 epochs of warm-up; x 0.1 after 7/8 of the epochs
            late = 0.1 if epoch >= args.epochs * 7 // 8 else 1.0
            optimizer.param_groups[0]["lr"] = rate * min((epoch + 1) / 10, 1.0) * late
        total = 0.0
        for views, *_ in tqdm(dataloader, desc=f"epoch {epoch}"):
            prediction, target = model(views[0].to(device))
            loss = criterion(prediction, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        print(f"epoch {epoch}, loss {total / len(dataloader):.4f}")
    torch.save(model.backbone.state_dict(), "simmim_dpp_backbone.pt")
    print("backbone: simmim_dpp_backbone.pt")


if __name__ == "__main__":
    main()
