"""Stock MoCo, BYOL, SimCLR and SimSiam with MixMask, run by mmpretrain's own tools."""

import argparse
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from mmpretrain.registry import MODELS

import mim_plugins.mmpretrain  # noqa: F401  (checkpoints load)

from .tools import CONFIGS, IMPORT, RUNTIME, read_log, run_tool

STOCK = {
    "MoCo": "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py",
    "BYOL": "byol/byol_resnet50_16xb256-coslr-200e_in1k.py",
    "SimCLR": "simclr/simclr_resnet50_8xb32-coslr-200e_in1k.py",
    "SimSiam": "simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py",
}

# What makes the stock configs small, and says nothing of MixMask.
SMALL = """
model = dict(
    backbone=dict(depth=18, stem_channels=8, base_channels=8), neck=dict(in_channels=64))
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(
        _delete_=True, type='CustomDataset', data_root={root!r}, data_prefix='train',
        indices=16, pipeline={{{{_base_.train_pipeline}}}}))
randomness = dict(seed=0)
"""


def config(name: str, photo_folder: Path, model: str = "") -> str:
    base = f"_base_ = 'mmpretrain::{STOCK[name]}'\n"
    queue = "model.update(queue_len=32)\n" if name == "MoCo" else ""
    return base + IMPORT + SMALL.format(root=str(photo_folder)) + queue + model + RUNTIME


def logged(log: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf" {name}: (-?[\d.]+)", log)]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STOCK))
def test_a_stock_config_becomes_mixmask(name: str, photo_folder: Path, tmp_path: Path) -> None:
    """By the import line, the type and one dict; off, it trains as the stock config does."""
    runs = {
        "stock": "",
        "off": f"model.update(type='MixMask{name}')\n",
        "on": f"model.update(type='MixMask{name}', mixing=dict(grid_size=8))\n",
    }
    logs, weights = {}, {}
    for run, lines in runs.items():
        path = tmp_path / f"{run}.py"
        path.write_text(config(name, photo_folder, lines))
        run_tool("train", path, "--work-dir", tmp_path / run)
        logs[run] = read_log(tmp_path / run)
        weights[run] = CheckpointLoader.load_checkpoint(str(tmp_path / run / "epoch_1.pth"), "cpu")[
            "state_dict"
        ]
    assert logged(logs["off"], "loss") == logged(logs["stock"], "loss")
    assert len(logged(logs["on"], "loss")) == 2
    for total, original, mixed in zip(
        *(logged(logs["on"], key) for key in ("loss", "loss_orig", "loss_mixmask")), strict=True
    ):
        assert total == pytest.approx(original + mixed, abs=2e-4)  # logged with four digits
    # The first step's original term is the stock loss; what follows differs.
    first = [logged(logs[run], key)[0] for run, key in (("stock", "loss"), ("on", "loss_orig"))]
    assert first[0] == pytest.approx(first[1], abs=2e-4)
    assert list(weights["on"]) == list(weights["off"]) == list(weights["stock"])
    for key, value in weights["stock"].items():
        assert torch.equal(weights["off"][key], value), key
    assert any(not torch.equal(weights["on"][key], weights["stock"][key]) for key in weights["on"])
    if name == "MoCo":
        assert weights["on"]["queue_ptr"].item() == 16


@pytest.mark.slow
def test_resume_and_linear_probe(photo_folder: Path, tmp_path: Path) -> None:
    """The stock tool resumes, and upstream's own linear probe loads the backbone as it is."""
    path = tmp_path / "config.py"
    both = "model.update(type='MixMaskMoCo', mixing=dict(), unmix=dict(prob_global=0.5))\n"
    path.write_text(config("MoCo", photo_folder, both))
    run_tool("train", path, "--work-dir", tmp_path / "run")
    run_tool(
        "train", path, "--work-dir", tmp_path / "run", "--resume", "--cfg-options",
        "train_cfg.max_epochs=2", "model.mixing.ratio=0.25,0.75", "model.unmix.prob_global=0.0",
    )  # fmt: skip
    log = read_log(tmp_path / "run")
    assert "resumed epoch: 1" in log
    assert len(logged(log, "loss_unmix")) == len(logged(log, "loss_mixmask")) == 4
    checkpoint = tmp_path / "run/epoch_2.pth"
    weights = CheckpointLoader.load_checkpoint(str(checkpoint), "cpu")["state_dict"]
    assert weights["queue_ptr"].item() == 0  # 4 steps of 8 in 32

    loader = """dict(
        batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(
            _delete_=True, type='CustomDataset', data_root={!r}, data_prefix={!r},
            indices=16, pipeline={{{{_base_.{}_pipeline}}}}))\n"""
    probe = tmp_path / "probe.py"
    probe.write_text(
        "_base_ = 'mmpretrain::mocov2/benchmarks/resnet50_8xb32-linear-steplr-100e_in1k.py'\n"
        + IMPORT
        + "model = dict(\n"
        "    backbone=dict(depth=18, stem_channels=8, base_channels=8,\n"
        f"        init_cfg=dict(checkpoint={str(checkpoint)!r})),\n"
        "    head=dict(num_classes=15, in_channels=64))\n"
        + "train_dataloader = "
        + loader.format(str(photo_folder), "train", "train")
        + "val_dataloader = "
        + loader.format(str(photo_folder), "test", "test")
        + "test_dataloader = val_dataloader\n"
        + RUNTIME
    )
    run_tool("train", probe, "--work-dir", tmp_path / "probe")
    assert re.search(r"Epoch\(val\).*accuracy/top1: [\d.]+", read_log(tmp_path / "probe"))
    pretrained = CheckpointLoader.load_checkpoint(str(checkpoint), "cpu")["state_dict"]
    probed = CheckpointLoader.load_checkpoint(str(tmp_path / "probe/epoch_1.pth"), "cpu")[
        "state_dict"
    ]
    backbone = [key for key in probed if key.startswith("backbone.")]
    assert len(backbone) > 60
    assert all(torch.equal(probed[key], pretrained[key]) for key in backbone)


def names(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob(f"mixmask/{pattern}"))


MIXMASK = "moco-mixmask_resnet18_1xb512-coslr-1000e_cifar100.py"
BOTH = "model.unmix.prob_global=0.5"
ROWS = [
    # table 1
    (["model.mixing.grid_size=16"], ["MixMask(mask='block', grid_size=16, ratio=0.5"]),
    (["model.mixing.mask=random"], ["MixMask(mask='random', grid_size=2, ratio=0.5"]),
    (["model.mixing.ratio=0.25"], ["MixMask(mask='block', grid_size=2, ratio=0.25"]),
    (["model.mixing.ratio=0.0,1.0"], ["MixMask(mask='block', grid_size=2, ratio=(0.0, 1"]),
    # table 2
    ([BOTH], ["permutation='random'", "permutation='inverse'"]),
    ([BOTH, "model.mixing.permutation=inverse"], ["permutation='inverse'"] * 2),
    # table 3
    (["model.unmix.prob_global=0.0"], ["MixMask(", "UnMix(prob_global=0.0"]),
    # table 4
    (["model.mixing=None"], []),
    (["model.mixing.type=EraseMask"], ["EraseMask(mask='block', grid_size=2, ratio=0.5"]),
    # table 5
    ([BOTH, "model.mixing=None"], ["UnMix(prob_global=0.5"]),
]


@pytest.mark.parametrize(("arguments", "mixers"), ROWS)
def test_every_row_of_the_tables_mixes_so(arguments: list[str], mixers: list[str]) -> None:
    """As README.md lists them, given the way ``tools/train.py`` takes them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    cfg = Config.fromfile(CONFIGS / "mixmask" / MIXMASK)
    cfg.merge_from_dict(parser.parse_args(["--cfg-options", *arguments]).cfg_options)
    init_default_scope("mmpretrain")
    built = MODELS.build(cfg.model).mixers
    assert len(built) == len(mixers)
    assert all(part in repr(mixer) for mixer, part in zip(built, mixers, strict=True))


@pytest.mark.parametrize("name", names("benchmarks/*rcnn*.py"))
def test_detection_configs_parse(name: str) -> None:
    """Over mmdetection's own bases. Running them needs mmcv's compiled operators."""
    if find_spec("mmdet") is None:
        pytest.skip("mmdet is not installed")
    cfg = Config.fromfile(CONFIGS / name, import_custom_modules=False)
    for part in (cfg.model.backbone, cfg.model.roi_head.shared_head):
        assert part.norm_cfg == {"type": "SyncBN", "requires_grad": True}
        assert (part.style, part.norm_eval, part.depth) == ("pytorch", False, 50)
        assert part.init_cfg == {"type": "Pretrained", "checkpoint": "", "prefix": "backbone."}
    assert cfg.model.roi_head.shared_head.type == "ResLayerExtraNorm"
    assert cfg.optim_wrapper.optimizer.lr == 0.02
    assert cfg.custom_hooks[-1].type == "mmpretrain.PreciseBNHook"
    if "voc" in name:
        assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end == 24000
        assert cfg.model.roi_head.bbox_head.num_classes == 20
    else:
        assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end == 90000
        assert cfg.param_scheduler[1].milestones == [60000, 80000]
        scales = next(step.scales for step in cfg.train_pipeline if "scales" in step)
        assert [side for _, side in scales] == [640, 672, 704, 736, 768, 800]
