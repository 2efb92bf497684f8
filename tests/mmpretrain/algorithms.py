"""Every self-supervised algorithm of mmpretrain 1.2: its stock config, cut down to CPU size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor, nn

import mim_plugins.mmpretrain  # noqa: F401

VIT = {"embed_dims": 32, "num_layers": 2, "num_heads": 2, "feedforward_channels": 64}
# HiViT counts the blocks of its last stage from 0 again: out_indices must not hit earlier ones.
HIVIT = {"embed_dims": 32, "depths": [1, 1, 7], "num_heads": 2}
MAE_DECODER = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}


def mae() -> dict[str, Any]:
    keys = {"embed_dim": 32, **MAE_DECODER}
    return {"model.backbone.arch": VIT, **{f"model.neck.{key}": keys[key] for key in keys}}


def resnet(*necks: str) -> dict[str, Any]:
    return {
        "model.backbone.depth": 18,
        "model.backbone.stem_channels": 8,
        "model.backbone.base_channels": 8,
        "model.backbone.norm_cfg": {"type": "BN"},
        **{f"model.{neck}.in_channels": 64 for neck in necks},
        **{f"model.{neck}.hid_channels": 64 for neck in necks},
    }


@MODELS.register_module()
class TinyCLIP(nn.Module):
    """In place of CLIP, whose weights would be downloaded: features and attention."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = nn.functional.avg_pool2d(images, 16).flatten(2).transpose(1, 2).mean(2)
        means = torch.cat([means.mean(1, keepdim=True), means], dim=1)  # (B, 197)
        return means[:, :, None].expand(-1, -1, 512), means.softmax(1)[:, None].expand(-1, 197, -1)


MASKED = {
    "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py": mae(),
    "mae/mae_hivit-base-p16_8xb512-amp-coslr-400e_in1k.py": mae() | {"model.backbone.arch": HIVIT},
    "mff/mff_vit-base-p16_8xb512-amp-coslr-300e_in1k.py": mae()
    | {"model.backbone.out_indices": [0, 1]},
    "mixmim/mixmim_mixmim-base_16xb128-coslr-300e_in1k.py": {
        "model.backbone.arch": {
            "embed_dims": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
        },
        "model.neck.embed_dim": 128,
        "model.neck.decoder_embed_dim": 32,
        "model.neck.decoder_depth": 1,
        "model.neck.decoder_num_heads": 2,
    },
    "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py": {
        "model.backbone.arch": {
            "embed_dims": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
        },
        "model.neck.in_channels": 128,
    },
    "spark/spark_sparse-resnet50_8xb512-amp-coslr-800e_in1k.py": {
        "model.backbone.depth": 50,
        "model.backbone.base_channels": 8,
        "model.backbone.stem_channels": 8,
        "model.enc_dec_norm_cfg.type": "SparseBatchNorm2d",
        "model.enc_dec_norm_dim": 256,
        "model.neck.feature_dim": 64,
    },
    "itpn/itpn-pixel_hivit-base-p16_8xb512-amp-coslr-400e_in1k.py": {
        "model.backbone.arch": HIVIT,
        "model.neck.embed_dim": 32,
        "model.neck.fpn_dim": 32,
        "model.neck.fpn_depth": 1,
        "model.neck.decoder_embed_dim": 32,
        "model.neck.decoder_depth": 1,
        "model.neck.decoder_num_heads": 2,
    },
    "beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py": {
        "model.backbone.arch": VIT,
        "model.head.embed_dims": 32,
        "model.target_generator.init_cfg": None,  # its weights would be downloaded
        "model.target_generator.n_hid": 16,
    },
    "cae/cae_beit-base-p16_8xb256-amp-coslr-300e_in1k.py": {
        "model.backbone.arch": VIT,
        "model.neck.embed_dims": 32,
        "model.neck.num_heads": 2,
        "model.neck.regressor_depth": 1,
        "model.neck.decoder_depth": 1,
        "model.target_generator.init_cfg": None,
        "model.target_generator.n_hid": 16,
    },
    "maskfeat/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k.py": {
        "model.backbone.arch": VIT,
        "model.neck.in_channels": 32,
    },
    "eva/eva-mae-style_vit-base-p16_16xb256-coslr-400e_in1k.py": mae()
    | {"model.target_generator": {"type": "TinyCLIP"}},
    "milan/milan_vit-base-p16_16xb256-amp-coslr-400e_in1k.py": mae()
    | {"model.target_generator": {"type": "TinyCLIP"}},
}

CONTRASTIVE = {
    "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py": resnet("neck") | {"model.queue_len": 16},
    "byol/byol_resnet50_16xb256-coslr-200e_in1k.py": resnet("neck"),
    "simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py": resnet("neck"),
    "simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py": resnet("neck"),
    "barlowtwins/barlowtwins_resnet50_8xb256-coslr-300e_in1k.py": resnet("neck"),
    "densecl/densecl_resnet50_8xb32-coslr-200e_in1k.py": resnet("neck") | {"model.queue_len": 16},
    "swav/swav_resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px.py": resnet("neck"),
    "mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k.py": {
        "model.backbone.arch": VIT,
        "model.neck.in_channels": 32,
        "model.neck.hid_channels": 32,
    },
}


def build_runner(
    name: str, data: Path, work_dir: Path, images: int = 8, batch: int = 4, **options: Any
) -> Runner:
    """A runner of a stock config on the first ``images`` of a folder, two epochs.

    Args:
        name: A key of ``MASKED`` or ``CONTRASTIVE``.
        data: A folder with a split ``train`` of class folders.
        work_dir: Where to write.
        images, batch: Numbers of images of the data set and of a batch.
        **options: Further entries of the config.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    config = work_dir / "config.py"
    config.write_text(f"_base_ = 'mmpretrain::{name}'\n")
    cfg = Config.fromfile(config)
    for key, value in (MASKED | CONTRASTIVE)[name].items():
        *parents, last = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        node[last] = value
    _plain_batch_norm(cfg.model)
    cfg.train_dataloader.update(
        batch_size=batch, num_workers=0, persistent_workers=False, drop_last=True
    )
    cfg.train_dataloader.dataset = {
        "type": "CustomDataset",
        "data_root": str(data),
        "data_prefix": "train",
        "indices": [120 * index // images for index in range(images)],
        "pipeline": cfg.train_dataloader.dataset.pipeline,
    }
    cfg.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 2}
    cfg.optim_wrapper = {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 1e-3}}
    cfg.param_scheduler = None
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": 1}
    cfg.resume, cfg.randomness = False, {"seed": 0}
    cfg.work_dir, cfg.experiment_name = str(work_dir), f"{work_dir.parent.name}-{work_dir.name}"
    cfg.merge_from_dict(options)
    return Runner.from_cfg(cfg)


def _plain_batch_norm(node: Any) -> None:
    """SyncBN needs a GPU."""
    if isinstance(node, dict):
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        for value in node.values():
            _plain_batch_norm(value)
    elif isinstance(node, list):
        for value in node:
            _plain_batch_norm(value)
