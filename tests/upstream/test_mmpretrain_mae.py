"""The stock MAE pipeline of mmpretrain with DPP masks, run by its own unchanged tools."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.runner import CheckpointLoader

import mim_plugins.mmpretrain  # noqa: F401
from mim_plugins.mmpretrain import remedies

from .tools import (
    CROP,
    IMPORT,
    RUNTIME,
    TINY_CLASSIFIER,
    TINY_MAE,
    loader,
    read_log,
    run_tool,
)

PRETRAIN = "_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'\n"
LINEAR = "_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb2048-linear-coslr-90e_in1k.py'\n"
FINE_TUNE = "_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py'\n"
BACKBONE = """
model['backbone'].update(
    type='MaskedMAEViT', masking=dict(type='DPPMasking', tau=0.5))
"""


def losses(log: str) -> list[float]:
    return [float(value) for value in re.findall(r"Epoch\(train\).*? loss: ([\d.]+)", log)]


@pytest.mark.slow
def test_pretrain_resume_probe_fine_tune_and_test(photo_folder: Path, tmp_path: Path) -> None:
    pretrain = tmp_path / "pretrain.py"
    data = "train_dataloader = " + loader(photo_folder, "train", 16, CROP)
    pretrain.write_text(PRETRAIN + IMPORT + TINY_MAE + BACKBONE + data + RUNTIME)
    work_dir = tmp_path / "pretrain"

    run_tool("train", pretrain, "--work-dir", work_dir)
    first = losses(read_log(work_dir))
    assert len(first) == 2

    # The stock tool resumes after the first epoch and trains the second only.
    run_tool(
        "train", pretrain, "--work-dir", work_dir, "--resume", "--cfg-options",
        "train_cfg.max_epochs=2",
    )  # fmt: skip
    log = read_log(work_dir)
    assert "resumed epoch: 1" in log
    assert len(losses(log)) == 4
    checkpoint = work_dir / "epoch_2.pth"

    # Upstream's own linear probe and fine-tuning load the backbone without conversion.
    weights = CheckpointLoader.load_checkpoint(str(checkpoint), "cpu")["state_dict"]
    for name, base in (("linear", LINEAR), ("fine-tune", FINE_TUNE)):
        config = tmp_path / f"{name}.py"
        config.write_text(
            base
            + IMPORT
            + TINY_CLASSIFIER
            + f"model['backbone']['init_cfg'] = dict(checkpoint={str(checkpoint)!r})\n"
            + ("model['backbone']['frozen_stages'] = 2\n" if name == "linear" else "")
            + ("model['neck'] = dict(input_features=32)\n" if name == "linear" else "")
            + "model['head'] = dict(num_classes=15, in_channels=32)\n"
            + "data_preprocessor = dict(num_classes=15)\n"
            + f"train_dataloader = {loader(photo_folder, 'train', 16, CROP)}"
            + f"val_dataloader = {loader(photo_folder, 'test', 16)}"
            + "test_dataloader = val_dataloader\n"
            + RUNTIME
        )
        run_tool("train", config, "--work-dir", tmp_path / name)
        log = read_log(tmp_path / name)
        assert re.search(r"Epoch\(val\).*accuracy/top1: [\d.]+", log)
        missing = re.search(r"missing keys in source state_dict: (.*)", log)
        assert missing is None or "layers" not in missing[1], missing[1]
        trained = CheckpointLoader.load_checkpoint(str(tmp_path / name / "epoch_1.pth"), "cpu")[
            "state_dict"
        ]
        backbone = [key for key in trained if key.startswith("backbone.layers")]
        assert len(backbone) > 20
        same = [torch.equal(trained[key], weights[key]) for key in backbone]
        # The probe's encoder is frozen, so it must hold exactly the pretrained weights.
        assert all(same) if name == "linear" else not any(same)

        output = run_tool(
            "test", config, tmp_path / name / "epoch_1.pth", "--work-dir", tmp_path / "test"
        )
        assert "accuracy/top1" in output


@pytest.mark.slow
def test_checkpoints_of_stock_runs_load(photo_folder: Path, tmp_path: Path) -> None:
    """Without the plugin stock tools write checkpoints that they cannot resume; with it they do."""
    if ("find_loader", "active") in [(remedy.name, remedy.state) for remedy in remedies.status()]:
        pytest.skip("without the plugin mmengine does not train on this Python")
    stock = tmp_path / "stock.py"
    data = "train_dataloader = " + loader(photo_folder, "train", 16, CROP)
    float32 = "optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=1e-4))\n"
    collate = "train_dataloader['collate_fn'] = dict(_delete_=True, type='default_collate')\n"
    stock.write_text(PRETRAIN + TINY_MAE + data + collate + RUNTIME + float32)
    run_tool("train", stock, "--work-dir", tmp_path / "stock")
    config = tmp_path / "ours.py"
    config.write_text(PRETRAIN + IMPORT + TINY_MAE + BACKBONE + data + RUNTIME + float32)
    run_tool(
        "train", config, "--work-dir", tmp_path / "ours",
        "--resume", tmp_path / "stock/epoch_1.pth", "--cfg-options", "train_cfg.max_epochs=2",
    )  # fmt: skip
    assert "resumed epoch: 1" in read_log(tmp_path / "ours")
