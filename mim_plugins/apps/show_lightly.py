"""Pictures of Lightning checkpoints of lightly's MAE, for ``show``."""

from __future__ import annotations

import argparse
import pickle
import re
from functools import partial
from math import isqrt
from pathlib import Path

import torch
from lightly.transforms.utils import IMAGENET_NORMALIZE
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from .._check import check_fraction
from ..lightly.analysis.reconstruction import MAE_PARTS
from ..lightly.watch import prefix_tokens, removed_patches
from .lightly_models import MAE
from .show import Reconstruct, reconstruct_patches

# Width to number of heads: of timm's vision transformers, and of MAE's decoder.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
# As lightly's MAEDecoderTIMM has them, which held all of the decoder.
OLD_NAMES = {
    "decoder.decoder_embed.": "decoder_embed.",
    "decoder.decoder_pos_embed": "decoder.pos_embed",
    "decoder.decoder_blocks.": "decoder.blocks.",
    "decoder.decoder_norm.": "decoder.norm.",
    "decoder.decoder_pred.": "prediction_head.",
}


def open_checkpoint(args: argparse.Namespace) -> tuple[MAE, int, Reconstruct]:
    """The module, the side of its images, and how it reconstructs them.

    Raises:
        ValueError: If it holds no MAE of lightly, or its weights do not tell the model.
    """
    ratio = check_fraction("mask_ratio", args.mask_ratio)
    weights = read_weights(args.checkpoint, args.trust)
    model = build(weights, args.heads, ratio, args.checkpoint)
    backbone = model.backbone

    def predict(inputs: Tensor) -> tuple[Tensor, Tensor]:
        decoded, idx_mask = model.decode(inputs)
        patches = model.prediction_head(decoded)[:, prefix_tokens(backbone) :]
        return patches, removed_patches(backbone, len(inputs), idx_mask)

    reconstruct = partial(
        reconstruct_patches, predict=predict, patch=model.patch_size, norm_pix=args.norm_pix,
        mean=IMAGENET_NORMALIZE["mean"], std=IMAGENET_NORMALIZE["std"],
    )  # fmt: skip
    return model, backbone.vit.patch_embed.img_size[0], reconstruct


def read_weights(path: Path, trust: bool) -> dict[str, Tensor]:
    """The ``state_dict`` of a Lightning checkpoint, under the names of lightly 1.6."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than numbers, hyperparameters say: give --trust to run what is "
            "in it, if you trust where the file comes from"
        ) from error
    weights = {}
    for key, value in saved["state_dict"].items():
        old = next((name for name in OLD_NAMES if key.startswith(name)), None)
        weights[OLD_NAMES[old] + key.removeprefix(old) if old else key] = value
    return weights


def build(
    weights: dict[str, Tensor], heads: list[int] | None, mask_ratio: float, source: object
) -> MAE:
    """The module that has these weights, in evaluation mode."""

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise ValueError(
                f"{source} must hold lightly's MAE, {', '.join(MAE_PARTS)} with a vision "
                f"transformer of timm: it has no {key}"
            )
        return weights[key].shape

    def count(prefix: str) -> int:
        numbers = [re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in weights]
        return 1 + max(int(found[1]) for found in numbers if found)

    dim, channels, patch, _ = shape("backbone.vit.patch_embed.proj.weight")
    decoder_dim = shape("decoder_embed.weight")[0]
    length = shape("decoder.pos_embed")[1]
    hidden, decoder_hidden = (
        shape(f"{blocks}.0.mlp.fc1.weight")[0]
        for blocks in ("backbone.vit.blocks", "decoder.blocks")
    )
    registers = weights.get("backbone.vit.reg_token", torch.empty(1, 0)).shape[1]
    prefix = int("backbone.vit.cls_token" in weights) + registers
    side = isqrt(length - prefix)
    if (
        channels != 3
        or side**2 != length - prefix
        or shape("prediction_head.weight")[0] != (3 * patch**2)
    ):
        raise ValueError(f"{source} must predict the pixels of square RGB images")
    if heads is None:
        if dim not in HEADS or decoder_dim not in DECODER_HEADS:
            raise ValueError(
                f"{source} has an encoder of width {dim} and a decoder of width {decoder_dim}, "
                "whose numbers of attention heads no weight tells: give --heads ENCODER DECODER"
            )
        heads = [HEADS[dim], DECODER_HEADS[decoder_dim]]
    for width, number in zip((dim, decoder_dim), heads, strict=True):
        if number < 1 or width % number:
            raise ValueError(f"heads must divide the width {width}, got {number}")
    vit = VisionTransformer(
        img_size=side * patch, patch_size=patch, embed_dim=dim, num_heads=heads[0],
        depth=count("backbone.vit.blocks."), mlp_ratio=hidden / dim, reg_tokens=registers,
        class_token="backbone.vit.cls_token" in weights,
        global_pool="token" if "backbone.vit.cls_token" in weights else "",
        no_embed_class=shape("backbone.vit.pos_embed")[1] == side**2,
        num_classes=len(weights.get("backbone.vit.head.bias", ())),
    )  # fmt: skip
    depth, mlp_ratio = count("decoder.blocks."), decoder_hidden / decoder_dim
    model = MAE(vit, decoder_dim, depth, heads[1], mlp_ratio, mask_ratio)
    own = tuple(f"{part}." for part in MAE_PARTS)
    weights = {key: value for key, value in weights.items() if key.startswith(own)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        odd = str(error).split("\n", 1)[-1].strip()
        raise ValueError(f"{source} is no MAE with a plain ViT of timm: {odd}") from error
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError(f"{source} must be finite, got NaN or infinity")
    return model.eval()
