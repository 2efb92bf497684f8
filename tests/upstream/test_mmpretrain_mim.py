"""Stock SimMIM, BEiT, MaskFeat and CAE with one line changed: the type of the mask generator."""

from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.config import Config
from mmengine.runner import Runner

import mim_plugins.mmpretrain  # noqa: F401

TINY = {"embed_dims": 32, "num_layers": 2, "num_heads": 2, "feedforward_channels": 64}
PIPELINES = {
    "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py": {
        "model.backbone.arch": {
            "embed_dims": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
        },
        "model.neck.in_channels": 128,
    },
    "maskfeat/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k.py": {
        "model.backbone.arch": TINY,
        "model.neck.in_channels": 32,
    },
    "beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py": {
        "model.backbone.arch": TINY,
        "model.head.embed_dims": 32,
        "model.target_generator.init_cfg": None,  # its weights would be downloaded
        "model.target_generator.n_hid": 16,
    },
    "cae/cae_beit-base-p16_8xb256-amp-coslr-300e_in1k.py": {
        "model.backbone.arch": TINY,
        "model.neck.embed_dims": 32,
        "model.neck.num_heads": 2,
        "model.neck.regressor_depth": 1,
        "model.neck.decoder_depth": 1,
        "model.target_generator.init_cfg": None,
        "model.target_generator.n_hid": 16,
    },
}


@pytest.mark.parametrize("name", list(PIPELINES))
def test_stock_pipeline_trains_with_dpp_masks(
    name: str, photo_folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = 'mmpretrain::{name}'\n")
    cfg = Config.fromfile(config)
    pipeline = cfg.train_dataloader.dataset.pipeline
    index = next(i for i, step in enumerate(pipeline) if step.type.endswith("MaskGenerator"))
    cfg.merge_from_dict(
        {f"train_dataloader.dataset.pipeline.{index}.type": "DPPMaskGenerator"}  # the line
    )
    for key, value in PIPELINES[name].items():
        *parents, last = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        node[last] = value
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset = {
        "type": "CustomDataset",
        "data_root": str(photo_folder),
        "data_prefix": "train",
        "indices": 4,
        "pipeline": cfg.train_dataloader.dataset.pipeline,
    }
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": -1, "save_last": False}
    cfg.work_dir, cfg.experiment_name = str(tmp_path), tmp_path.name
    runner = Runner.from_cfg(cfg)
    built = [type(step).__name__ for step in runner.train_dataloader.dataset.pipeline.transforms]
    assert "DPPMaskGenerator" in built
    runner.train()
    assert runner.iter == 2
    assert torch.isfinite(torch.tensor(runner.message_hub.get_scalar("train/loss").current()))
