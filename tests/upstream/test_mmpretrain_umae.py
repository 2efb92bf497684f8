"""U-MAE's and U-SimMIM's configs, and upstream's evaluation of their checkpoints."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.runner import CheckpointLoader

import mim_plugins.mmpretrain  # noqa: F401

from .tools import CONFIGS, CROP, RUNTIME, TINY_VIT, loader, run_tool

FOLDER = CONFIGS / "umae"


MASK = """dict(
    type='SimMIMMaskGenerator', input_size=64, mask_patch_size=16, model_patch_size=8,
    mask_ratio=0.6)"""
TINY = f"""model = dict(
    backbone=dict(arch={TINY_VIT}, img_size=64, patch_size=8),
    neck=dict(in_channels=32, encoder_stride=8), head=dict(patch_size=8))
"""


@pytest.mark.slow
def test_stock_tools_probe_a_simmim_vit(photo_folder: Path, tmp_path: Path) -> None:
    pretrain = tmp_path / "pretrain.py"
    data = loader(photo_folder, "train", 16, CROP, MASK)
    name = "usimmim_vit-base-p16_4xb32-amp-steplr-200e_in100.py"
    pretrain.write_text(
        f"_base_ = {str(FOLDER / name)!r}\n{TINY}\ntrain_dataloader = {data}{RUNTIME}"
    )
    run_tool("train", pretrain, "--work-dir", tmp_path / "pretrain")
    checkpoint = tmp_path / "pretrain" / "epoch_1.pth"
    config = tmp_path / "linear.py"
    config.write_text(
        f"_base_ = {str(FOLDER / 'benchmarks/beit-base-p16_8xb256-linear-coslr-90e_in100.py')!r}\n"
        + f"model = dict(backbone=dict(arch={TINY_VIT}, img_size=64, patch_size=8,"
        + f" frozen_stages=2, init_cfg=dict(checkpoint={str(checkpoint)!r})),"
        + " neck=dict(input_features=32), head=dict(num_classes=15, in_channels=32))\n"
        + "data_preprocessor = dict(num_classes=15)\n"
        + f"train_dataloader = {loader(photo_folder, 'train', 16, CROP)}"
        + f"val_dataloader = {loader(photo_folder, 'test', 16)}"
        + "test_dataloader = val_dataloader\n"
        + RUNTIME
    )
    output = run_tool("train", config, "--work-dir", tmp_path / "linear")
    assert re.search(r"Epoch\(val\).*accuracy/top1: [\d.]+", output)
    weights = CheckpointLoader.load_checkpoint(str(checkpoint), "cpu")["state_dict"]
    trained = CheckpointLoader.load_checkpoint(str(tmp_path / "linear" / "epoch_1.pth"), "cpu")[
        "state_dict"
    ]
    backbone = [key for key in trained if key.startswith("backbone.")]
    assert len(backbone) > 20
    assert all(torch.equal(trained[key], weights[key]) for key in backbone)
