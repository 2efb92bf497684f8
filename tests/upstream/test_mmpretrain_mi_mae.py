"""MI-MAE's configs under mmpretrain's own unchanged tools."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner
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
TINY_SWIN = """
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
        img_size=64, stage_cfgs=dict(block_cfgs=dict(window_size=2))),
    neck=dict(in_channels=128))
"""


def names(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob(pattern))


def run(config: Path, work_dir: Path) -> Runner:
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.experiment_name = str(work_dir), work_dir.name
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def logged(runner: Runner, name: str) -> float:
    return runner.message_hub.get_scalar(f"train/{name}").current()


@pytest.mark.slow
def test_pretrain_resume_and_probe(photo_folder: Path, tmp_path: Path) -> None:
    base = CONFIGS / "mi_mae" / "mi-mae_vit-base-p16_8xb128-amp-coslr-200e_in1k.py"
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


@pytest.mark.parametrize("name", names("mi_mae/mi-mae*.py"))
def test_pretrain_configs_run(name: str, photo_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    data = "train_dataloader = " + loader(photo_folder, "train", 16, CROP)
    config.write_text(f"_base_ = {str(CONFIGS / name)!r}\n" + TINY_MAE + SMALL + data + RUNTIME)
    full = Config.fromfile(CONFIGS / name)
    assert full.train_cfg.max_epochs == int(re.search(r"(\d+)e_", name)[1])
    assert full.param_scheduler[-1].end == full.train_cfg.max_epochs
    assert full.model.backbone.arch == ("l" if "large" in name else "b")
    assert full.train_dataloader.batch_size == 128
    runner = run(config, tmp_path)
    assert runner.iter == 2
    masking = runner.model.backbone.masking
    assert masking.num_masks == 4
    assert (masking.base is not None) == ("dpp" in name)
    if "4masks" in name:
        assert not list(runner.model.regularizers.parameters())
    else:
        assert logged(runner, "loss_mutual_information_variational") != 0


@pytest.mark.parametrize("name", names("mi_mae/mi-simmim*.py"))
def test_simmim_config_runs(name: str, photo_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    data = "train_dataloader = " + loader(photo_folder, "train", 16, CROP)
    config.write_text(f"_base_ = {str(CONFIGS / name)!r}\n" + TINY_SWIN + SMALL + data + RUNTIME)
    runner = run(config, tmp_path)
    assert runner.iter == 2
    assert runner.model.masking.num_masks == 2
    assert logged(runner, "loss_mutual_information_variational") != 0


@pytest.mark.parametrize("name", names("mi_mae/cifar/*.py"))
def test_cifar_configs_run_from_one_folder(name: str, photo_folder: Path, tmp_path: Path) -> None:
    """Equal data, batch and network; what differs is what the file's name says."""
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = {str(CONFIGS / name)!r}\n"
        f"train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False, "
        f"dataset=dict(data_root={str(photo_folder)!r}, indices=16))\n" + RUNTIME
    )
    full = Config.fromfile(CONFIGS / name)
    assert full.train_cfg.max_epochs == int(re.search(r"(\d+)e_", name)[1])
    assert full.param_scheduler[-1].end == full.train_cfg.max_epochs
    runner = run(config, tmp_path)
    assert runner.iter == 2
    masking = runner.model.backbone.masking
    assert masking.num_masks == (1 if Path(name).name.startswith("mae_") else 4)
    if masking.num_masks == 1:
        return
    term = runner.model.regularizers["mutual_information"]
    weights = term.cross_weight, term.output_weight, term.input_weight
    which = re.match(r"mi-mae-?(\w*)_vit", Path(name).name)[1]
    expected = {
        "": (0.1, 0.0, 0.001),
        "shared": (0.1, 0.0, 0.001),
        "4masks": (0.0, 0.0, 0.0),
        "cross": (0.1, 0.0, 0.0),
        "input": (0.0, 0.0, 0.001),
        "output": (0.0, 0.1, 0.0),
    }
    assert weights == expected[which]
    assert masking.shared == (which == "shared")


@pytest.mark.parametrize("name", names("mi_mae/benchmarks/vit-*_in1k.py"))
def test_downstream_configs_run(name: str, photo_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    full = Config.fromfile(CONFIGS / name)
    if "1pct" in name:
        assert full.train_dataloader.dataset.ann_file == "meta/train_1percent.txt"
        assert full.optim_wrapper.optimizer.lr == 1e-3
    config.write_text(
        f"_base_ = {str(CONFIGS / name)!r}\n"
        + TINY_CLASSIFIER
        + "model['backbone']['init_cfg'] = None\n"
        + ("model['backbone']['frozen_stages'] = 2\n" if "linear" in name else "")
        + ("model['neck'] = dict(input_features=32)\n" if "linear" in name else "")
        + "model['head'] = dict(in_channels=32)\n"
        + f"train_dataloader = {loader(photo_folder, 'train', 16, CROP)}"
        + f"val_dataloader = {loader(photo_folder, 'test', 16)}"
        + "test_dataloader = val_dataloader\n"
        + RUNTIME
    )
    assert run(config, tmp_path).iter == 2


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
