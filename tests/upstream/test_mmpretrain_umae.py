"""U-MAE's and U-SimMIM's configs, and upstream's evaluation of their checkpoints."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner

import mim_plugins.mmpretrain  # noqa: F401

from .tools import CONFIGS, CROP, IMPORT, RUNTIME, TINY_MAE, TINY_VIT, loader, run_tool

FOLDER = CONFIGS / "umae"
PUBLISHED = {"w1e-5": 1e-5, "w1e-4": 1e-4, "w1e-3": 1e-3, "w1e-2": 1e-2}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_configs_say_what_their_names_say(path: Path) -> None:
    cfg = Config.fromfile(path)
    epochs = int(re.search(r"(\d+)e_", path.name)[1])
    gpus, batch = (int(n) for n in re.search(r"(\d+)xb(\d+)", path.name).groups())
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[-1].end == epochs
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    assert ("imagenet100" in cfg.train_dataloader.dataset.data_root) == ("in100" in path.name)
    assert cfg.model.type == ("USimMIM" if path.name.startswith("usimmim") else "UMAE")
    weight = re.search(r"w1e-\d", path.name)
    if weight:
        assert cfg.model.uniformity_weight == PUBLISHED[weight[0]]


RUN = {
    "umae_vit-base-p16_8xb128-amp-coslr-200e_in1k.py": "",
    "autoencoder_vit-base-p16_8xb128-amp-coslr-200e_in100.py": "",
    "umae_vit-tiny-p4_8xb512-amp-coslr-2000e_cifar10-32px.py": "cifar",
    "usimmim_vit-base-p16_8xb16-amp-coslr-200e_in100.py": "vit",
    "usimmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py": "swin",
}
SIMMIM_MASK = """dict(
    type='SimMIMMaskGenerator', input_size=64, mask_patch_size={unit},
    model_patch_size={patch}, mask_ratio=0.6)"""
TINY = {
    "": TINY_MAE,
    "cifar": TINY_MAE,
    "vit": f"model = dict(backbone=dict(arch={TINY_VIT}, img_size=64, patch_size=8), "
    "neck=dict(in_channels=32, encoder_stride=8), head=dict(patch_size=8))\n",
    "swin": "model = dict(backbone=dict(arch=dict(_delete_=True, embed_dims=16, "
    "depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]), img_size=64, "
    "stage_cfgs=dict(block_cfgs=dict(window_size=2))), neck=dict(in_channels=128))\n",
}
MASKS = {
    "vit": [SIMMIM_MASK.format(unit=16, patch=8)],
    "swin": [SIMMIM_MASK.format(unit=32, patch=4)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUN))
def test_one_config_of_each_kind_runs(name: str, photo_folder: Path, tmp_path: Path) -> None:
    kind = RUN[name]
    config = tmp_path / "config.py"
    data = loader(photo_folder, "train", 16, CROP, *MASKS.get(kind, []))
    config.write_text(
        f"_base_ = {str(FOLDER / name)!r}\n{TINY[kind]}\ntrain_dataloader = {data}{RUNTIME}"
    )
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), f"{tmp_path.name}-{name}"
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    assert runner.message_hub.get_scalar("train/loss").current() > 0
    weight = cfg.model.uniformity_weight
    if weight:
        logged = runner.message_hub.get_scalar("train/loss_uniformity").current()
        assert 0 < logged <= weight


@pytest.mark.slow
def test_stock_tools_fine_tune_a_simmim_vit(photo_folder: Path, tmp_path: Path) -> None:
    pretrain = tmp_path / "pretrain.py"
    data = loader(photo_folder, "train", 16, CROP, *MASKS["vit"])
    name = "usimmim_vit-base-p16_8xb16-amp-coslr-200e_in100.py"
    pretrain.write_text(
        f"_base_ = {str(FOLDER / name)!r}\n{TINY['vit']}\ntrain_dataloader = {data}{RUNTIME}"
    )
    run_tool("train", pretrain, "--work-dir", tmp_path / "pretrain")
    checkpoint = tmp_path / "pretrain" / "epoch_1.pth"
    config = tmp_path / "linear.py"
    config.write_text(
        "_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'\n"
        + IMPORT
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((FOLDER / "benchmarks").glob("vit-tiny*.py")), ids=lambda path: path.stem
)
def test_cifar_evaluation_configs_run(path: Path, photo_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    crop = "dict(type='RandomResizedCrop', scale=32)"
    linear = "linear" in path.name
    config.write_text(
        f"_base_ = {str(path)!r}\n"
        + f"model = dict(backbone=dict(arch={TINY_VIT}, init_cfg=None"
        + (", frozen_stages=2), neck=dict(input_features=32)" if linear else ")")
        + ", head=dict(in_channels=32))\n"
        + f"train_dataloader = {loader(photo_folder, 'train', 16, crop)}"
        + f"val_dataloader = {loader(photo_folder, 'test', 16, crop)}"
        + "test_dataloader = val_dataloader\n"
        + RUNTIME
    )
    cfg = Config.fromfile(config)
    # the photographs have 15 classes
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 15
    cfg.work_dir, cfg.experiment_name = str(tmp_path), f"{tmp_path.name}-{path.stem}"
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2


@pytest.mark.parametrize(
    "path", sorted((FOLDER / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_evaluation_configs_fit_their_data(path: Path) -> None:
    cfg = Config.fromfile(path)
    classes = 100 if "in100" in path.name else 10
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    size = cfg.model.backbone.img_size
    assert size == (224 if "in100" in path.name else 32)
    assert f"-p{cfg.model.backbone.patch_size}_" in path.name
    layers = 24 if "large" in path.name else 12
    frozen = layers if "linear" in path.name else 0
    assert cfg.model.backbone.get("frozen_stages", 0) == frozen
