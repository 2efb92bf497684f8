"""Stock configs with every instrument on, run by the stock tools/train.py."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.runner import CheckpointLoader

import mim_plugins.mmpretrain  # noqa: F401  (its remedies let torch load checkpoints)

from .tools import CROP, IMPORT, RUNTIME, TINY_MAE, loader, read_log, run_tool

SWIN = "dict(_delete_=True, embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])"
SIMMIM_MASKS = (
    "dict(type='SimMIMMaskGenerator', input_size=192, mask_patch_size=32, "
    "model_patch_size=4, mask_ratio=0.6)"
)
TWO_VIEWS = f"dict(type='MultiView', num_views=[2], transforms=[[{CROP}]])"

PIPELINES = {
    "mae": (
        "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py",
        TINY_MAE,
        (CROP,),
        64,
    ),
    "simmim": (
        "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py",
        f"model = dict(backbone=dict(arch={SWIN}), neck=dict(in_channels=128))\n",
        (CROP.replace("64", "192"), SIMMIM_MASKS),
        192,
    ),
    "moco": (
        "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py",
        "model = dict(queue_len=16, backbone=dict(depth=18, stem_channels=8, base_channels=8), "
        "neck=dict(in_channels=64, hid_channels=64))\n",
        (TWO_VIEWS,),
        64,
    ),
}

HOOKS = """
custom_hooks = [
    dict(type='EffectiveRankHook', num_images=16),
    dict(type='OnlineProbeHook', val_dataloader=probe_dataloader),
    {}
]
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PIPELINES))
def test_stock_tool_with_every_hook(name: str, photo_folder: Path, tmp_path: Path) -> None:
    base, model, transforms, side = PIPELINES[name]
    masked = name in ("mae", "simmim")
    pictures = "dict(type='MaskVisualizationHook', num_images=4)" if masked else ""
    resize = f"dict(type='ResizeEdge', scale={side})"
    data = (
        "train_dataloader = "
        + loader(photo_folder, "train", 16, *transforms)
        + "probe_dataloader = "
        + loader(photo_folder, "test", 20, resize).replace("_delete_=True, ", "")
        + "optim_wrapper = dict(\n    _delete_=True, type='OptimWrapper', "
        "optimizer=dict(type='AdamW', lr=1e-3))\nparam_scheduler = []\n"
        "randomness = dict(seed=0)\n"
    )
    stock = tmp_path / "stock.py"
    watched = tmp_path / "watched.py"
    config = f"_base_ = 'mmpretrain::{base}'\n" + IMPORT + model + data + RUNTIME
    stock.write_text(config)
    watched.write_text(config + HOOKS.replace("{}", pictures))
    for path in (stock, watched):
        run_tool("train", path, "--work-dir", tmp_path / path.stem)

    # Stock weights, bit for bit, under stock keys.
    expected = CheckpointLoader.load_checkpoint(str(tmp_path / "stock/epoch_1.pth"), "cpu")
    checkpoint = CheckpointLoader.load_checkpoint(str(tmp_path / "watched/epoch_1.pth"), "cpu")
    assert checkpoint["state_dict"].keys() == expected["state_dict"].keys()
    for key, value in expected["state_dict"].items():
        assert torch.equal(value, checkpoint["state_dict"][key]), key

    log = read_log(tmp_path / "watched")
    assert re.search(
        r"Epoch\(train\) .*loss: -?[\d.]+.* probe_loss: [\d.]+ +probe_top1: [\d.]+", log
    )
    assert re.search(r"epoch 1: analysis/effective_rank [\d.]+", log)
    assert re.search(r"epoch 1: probe/linear_top1 [\d.]+, probe/knn_top1 [\d.]+", log)
    vis_data = next((tmp_path / "watched").glob("*/vis_data"))
    lines = (vis_data / "singular_spectrum.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(vis_data)).Reload()
    metrics = {"analysis/effective_rank", "probe/linear_top1", "probe/knn_top1", "probe_loss"}
    assert set(events.Tags()["scalars"]) >= metrics
    assert set(events.Tags()["images"]) == {"singular_spectrum"} | ({"masks"} if masked else set())

    # The stock tool resumes, and the instruments with it.
    run_tool("train", watched, "--work-dir", tmp_path / "watched", "--resume",
             "--cfg-options", "train_cfg.max_epochs=2")  # fmt: skip
    resumed = CheckpointLoader.load_checkpoint(str(tmp_path / "watched/epoch_2.pth"), "cpu")
    assert [entry["step"] for entry in resumed["effective_rank"]] == [0, 1, 2]
    assert resumed["online_probe"]["optimizer"]["state"][0]["step"] == 4
