"""MI-MAE's configs under mmpretrain's own unchanged tools."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmpretrain.registry import MODELS

import mim_plugins.mmpretrain  # noqa: F401

from .tools import (
    CONFIGS,
    CROP,
    IMPORT,
    RUNTIME,
    TINY_CLASSIFIER,
    TINY_MAE,
    loader,
    read_log,
    run_tool,
)

LINEAR = "_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'\n"
SMALL = "model['information'] = dict(hidden_dim=16, projection_dim=8)\n"


@pytest.mark.slow
def test_pretrain_resume_and_probe(photo_folder: Path, tmp_path: Path) -> None:
    base = CONFIGS / "mi_mae" / "mi-mae_vit-base-p16_8xb128-amp-coslr-400e_in1k.py"
    pretrain, work_dir = tmp_path / "pretrain.py", tmp_path / "pretrain"
    data = "train_dataloader = " + loader(photo_folder, "train", 16, CROP)
    pretrain.write_text(f"_base_ = {str(base)!r}\n" + TINY_MAE + SMALL + data + RUNTIME)
    run_tool("train", pretrain, "--work-dir", work_dir)
    first = CheckpointLoader.load_checkpoint(str(work_dir / "epoch_1.pth"), "cpu")["state_dict"]
    run_tool(
        "train", pretrain, "--work-dir", work_dir, "--resume", "--cfg-options",
        "train_cfg.max_epochs=2",
    )  # fmt: skip
    log = read_log(work_dir)
    assert "resumed epoch: 1" in log
    for term in ("cross", "input", "variational"):
        values = re.findall(rf"loss_mutual_information_{term}: (-?[\d.]+)", log)
        assert len(values) == 4
    assert len(re.findall(r" mutual_information_cross: ", log)) == 4

    # The variational network is saved and trained on; nothing of it is under "backbone.".
    second = CheckpointLoader.load_checkpoint(str(work_dir / "epoch_2.pth"), "cpu")["state_dict"]
    prefix = "regularizers.mutual_information.variational."
    own = [key for key in second if key.startswith(prefix)]
    assert own
    assert all(not torch.equal(first[key], second[key]) for key in own)
    backbone = {key for key in second if key.startswith("backbone.")}
    assert not any("mutual" in key or "variational" in key for key in backbone)

    probe = tmp_path / "linear.py"
    probe.write_text(
        LINEAR
        + IMPORT
        + TINY_CLASSIFIER
        + f"model['backbone']['init_cfg'] = dict(checkpoint={str(work_dir / 'epoch_2.pth')!r})\n"
        + "model['backbone']['frozen_stages'] = 2\n"
        + "model['neck'] = dict(input_features=32)\n"
        + "model['head'] = dict(num_classes=15, in_channels=32)\n"
        + "data_preprocessor = dict(num_classes=15)\n"
        + f"train_dataloader = {loader(photo_folder, 'train', 16, CROP)}"
        + f"val_dataloader = {loader(photo_folder, 'test', 16)}"
        + "test_dataloader = val_dataloader\n"
        + RUNTIME
    )
    run_tool("train", probe, "--work-dir", tmp_path / "linear")
    assert "accuracy/top1" in read_log(tmp_path / "linear")
    trained = CheckpointLoader.load_checkpoint(str(tmp_path / "linear" / "epoch_1.pth"), "cpu")[
        "state_dict"
    ]
    layers = [key for key in backbone if key.startswith("backbone.layers")]
    assert layers
    assert all(torch.equal(trained[key], second[key]) for key in layers)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("mmdet", "mask-rcnn_vit-base-p16_fpn_ms-1x_coco.py"),
        ("mmseg", "upernet_vit-base-p16_8xb2-160k_ade20k-512x512.py"),
    ],
)
def test_dense_configs_take_the_checkpoint(library: str, name: str) -> None:
    """The backbone is mmpretrain's ViT of the pre-training, with a map for each pyramid level."""
    pytest.importorskip(library)
    cfg = Config.fromfile(CONFIGS / "mi_mae/benchmarks" / name, import_custom_modules=False)
    backbone = cfg.model.backbone
    assert backbone.pop("init_cfg").prefix == "backbone."
    arch = {"embed_dims": 32, "num_layers": 12, "num_heads": 2, "feedforward_channels": 64}
    vit = MODELS.build({**backbone, "arch": arch, "img_size": 64})
    pretrained = MODELS.build({"type": "MaskedMAEViT", "arch": arch, "img_size": 64})
    missing, _ = vit.load_state_dict(pretrained.state_dict(), strict=False)
    assert not missing
    assert [f.shape for f in vit(torch.rand(1, 3, 96, 64))] == [(1, 32, 6, 4)] * 4
    multipliers = cfg.optim_wrapper.paramwise_cfg.custom_keys
    for parameter, _ in vit.named_parameters():
        found = [key for key in multipliers if key in f"backbone.{parameter}"]
        assert len(found) == (0 if parameter.startswith("ln1.") else 1), parameter
