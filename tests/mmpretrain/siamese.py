"""Tiny siamese algorithms of mmpretrain's own parts: ResNets of 8 channels, 16 x 16 images."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

import mim_plugins.mmpretrain  # noqa: F401

ALGORITHMS = ("MoCo", "BYOL", "SimCLR", "SimSiam")
BATCH, SIZE, DIM, QUEUE, TEMPERATURE = 4, 16, 6, 12, 0.3


def _neck(channels: int, pool: bool, **arguments: object) -> dict:
    return {
        "type": "NonLinearNeck",
        "in_channels": channels,
        "hid_channels": 10,
        "out_channels": DIM,
        "with_avg_pool": pool,
        "norm_cfg": {"type": "BN1d"},
        **arguments,
    }


def build(algorithm: str, plugin: bool = True, **arguments: Any) -> torch.nn.Module:
    """One of ``ALGORITHMS``, or its plugin, with equal weights; ``arguments`` are its own."""
    init_default_scope("mmpretrain")
    contrastive = {
        "type": "ContrastiveHead",
        "loss": {"type": "CrossEntropyLoss"},
        "temperature": TEMPERATURE,
    }
    predictive = {
        "type": "LatentPredictHead",
        "loss": {"type": "CosineSimilarityLoss"},
        "predictor": _neck(DIM, False, with_last_bn=False),
    }
    config: dict[str, Any] = {
        "type": f"MixMask{algorithm}" if plugin else algorithm,
        "backbone": {
            "type": "ResNet_CIFAR",
            "depth": 18,
            "stem_channels": 8,
            "base_channels": 8,
            "zero_init_residual": False,
        },
        "neck": _neck(64, True),
        "head": contrastive if algorithm in ("MoCo", "SimCLR") else predictive,
    }
    if algorithm == "MoCo":
        config |= {"queue_len": QUEUE, "feat_dim": DIM, "momentum": 0.1}
    if algorithm == "BYOL":
        config["base_momentum"] = 0.1
        MessageHub.get_current_instance().update_info("max_iters", 100)
    torch.manual_seed(0)
    model = MODELS.build({**config, **arguments})
    model.init_weights()
    return model


def views(seed: int = 1, batch: int = BATCH) -> list[torch.Tensor]:
    """Two views ``(batch, 3, SIZE, SIZE)``."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(2, batch, 3, SIZE, SIZE, generator=generator))


def train(model: torch.nn.Module, steps: int = 4) -> list[float]:
    """Total loss of each of ``steps`` optimiser steps under a fixed seed."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(3)
    losses = []
    for step in range(steps):
        loss, _ = model.parse_losses(model.loss(views(step), None))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
