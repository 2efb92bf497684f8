"""Stock MAE and SimMIM checkpoints, scored by the stock ``tools/test.py``."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")

import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS

from mim_plugins.analysis import reconstruction_scores
from mim_plugins.apps.images import load_images
from mim_plugins.mmpretrain import reconstruct

from .tools import CROP, IMPORT, RUNTIME, TINY_MAE, loader, run_tool

MAE = "_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'\n" + TINY_MAE
SIMMIM = """_base_ = 'mmpretrain::simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py'
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=16, depths=[1] * 4, num_heads=[1] * 4), img_size=64,
        stage_cfgs=dict(block_cfgs=dict(window_size=2))),
    neck=dict(in_channels=128))
"""
MASKS = (
    "dict(type='SimMIMMaskGenerator', input_size=64, mask_patch_size=32, model_patch_size=4, "
    "mask_ratio=0.5)"
)
STOCK = """
train_dataloader['collate_fn'] = dict(_delete_=True, type='default_collate')
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=1e-3))
"""
SCORE = """
test_cfg = dict(type='ReconstructionTestLoop', masked={masked})
test_evaluator = dict(type='ReconstructionMetric')
resume = False
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_scores_of_a_stock_checkpoint(name: str, photo_folder: Path, tmp_path: Path) -> None:
    base = MAE if name == "mae" else SIMMIM
    masks = [] if name == "mae" else [MASKS]
    stock = tmp_path / "stock.py"
    data = "train_dataloader = " + loader(photo_folder, "train", 16, CROP, *masks)
    stock.write_text(base + data + STOCK + RUNTIME)
    run_tool("train", stock, "--work-dir", tmp_path / "stock")

    scores = {}
    for masked in (False, True):
        config = tmp_path / f"score_{masked}.py"
        data = "test_dataloader = " + loader(photo_folder, "test", 12, *masks)
        data = data.replace("_delete_=True, ", "")  # the base has no test_dataloader
        config.write_text(
            f"_base_ = {str(stock)!r}\n" + IMPORT + data + SCORE.format(masked=masked)
        )
        out = tmp_path / f"{masked}.json"
        output = run_tool(
            "test", config, tmp_path / "stock/epoch_1.pth", "--work-dir", tmp_path / "test",
            "--out", out, "--out-item", "metrics",
        )  # fmt: skip
        assert re.search(r"Epoch\(test\).*reconstruction/fsim: [\d.]+", output)
        found = json.loads(out.read_text())
        scores[masked] = {key.removeprefix("reconstruction/"): v for key, v in found.items()}

    # The same by hand: the images one by one, the model from the config.
    cfg = Config.fromfile(tmp_path / "score_False.py")
    model = MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor}).eval()
    load_checkpoint(model, str(tmp_path / "stock/epoch_1.pth"), map_location="cpu")
    images = load_images(sorted((photo_folder / "test").rglob("*.png"))[:12], 64)
    each: dict[str, list[float]] = {}
    for image in images.split(1):
        batch = model.data_preprocessor({"inputs": image.flip(1), "data_samples": None})
        for key, value in reconstruction_scores(*reconstruct(model, batch["inputs"])).items():
            each.setdefault(key, []).append(value.item())
    for key, values in each.items():
        assert scores[False][key] == pytest.approx(torch.tensor(values).mean().item(), rel=1e-3)
    # Half or a quarter of the pixels are given.
    assert scores[True]["mse"] < scores[False]["mse"]


def test_without_the_loop_the_metric_says_so() -> None:
    from mim_plugins.mmpretrain import ReconstructionMetric

    with pytest.raises(ValueError, match="ReconstructionTestLoop"):
        ReconstructionMetric().process(None, [{"pred_label": 0}])
