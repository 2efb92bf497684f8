"""A tiny MAE of mmpretrain's own parts."""

from __future__ import annotations

import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

import mim_plugins.mmpretrain  # noqa: F401

ARCH = {"embed_dims": 32, "num_layers": 2, "num_heads": 2, "feedforward_channels": 64}


def build(backbone: str, algorithm: dict | None = None, **arguments: object) -> torch.nn.Module:
    """A tiny MAE with this backbone; ``algorithm`` overrides its type and adds arguments."""
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    model = MODELS.build(
        {
            "type": "MAE",
            "backbone": {"type": backbone, "arch": ARCH, "img_size": 64, "patch_size": 8}
            | arguments,
            "neck": {
                "type": "MAEPretrainDecoder",
                "num_patches": 64,
                "patch_size": 8,
                "embed_dim": 32,
                "decoder_embed_dim": 32,
                "decoder_depth": 1,
                "decoder_num_heads": 2,
            },
            "head": {
                "type": "MAEPretrainHead",
                "patch_size": 8,
                "norm_pix": True,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"},
            },
            **(algorithm or {}),
        }
    )
    model.init_weights()
    return model


def train(model: torch.nn.Module, steps: int = 20) -> list[float]:
    """Total loss of each of ``steps`` optimiser steps under a fixed seed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        loss, _ = model.parse_losses(model.loss(torch.rand(4, 3, 64, 64), None))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
