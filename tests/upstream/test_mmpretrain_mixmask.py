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
from mmengine.runner import CheckpointLoader, Runner
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
        "on": f"model.update(type='MixMask{name}', mixmask=dict(grid_size=8))\n",
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
    both = "model.update(type='MixMaskMoCo', mixmask=dict(), unmix=dict(prob_global=0.5))\n"
    path.write_text(config("MoCo", photo_folder, both))
    run_tool("train", path, "--work-dir", tmp_path / "run")
    run_tool(
        "train", path, "--work-dir", tmp_path / "run", "--resume", "--cfg-options",
        "train_cfg.max_epochs=2", "model.mixmask.ratio=0.25,0.75", "model.unmix.prob_global=0.0",
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


def data_of(name: str) -> str:
    return name.removesuffix(".py").rsplit("_", 1)[1]


def dataset(folder: Path, split: str, pipeline: list, images: int = 16) -> dict:
    """Photographs in place of the data set, in the config's own pipeline."""
    if pipeline[0]["type"] != "LoadImageFromFile":  # CIFAR100 holds arrays
        resize = {"type": "Resize", "scale": (32, 32)}
        pipeline = [{"type": "LoadImageFromFile"}, resize, *pipeline]
    return {
        "type": "CustomDataset",
        "data_root": str(folder),
        "data_prefix": split,
        "indices": images,
        "pipeline": pipeline,
    }


def shrink(loader: dict) -> None:
    loader.update(batch_size=8, num_workers=0, persistent_workers=False)


def run(cfg: Config, folder: Path) -> Runner:
    """Two steps of a config, on the CPU."""
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.logger = {"type": "LoggerHook", "interval": 1}
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": -1, "save_last": False}
    cfg.work_dir, cfg.experiment_name = str(folder), f"{folder.name}-{cfg.filename}"
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    return runner


@pytest.mark.parametrize("name", names("*.py"))
def test_pretrain_configs_run(name: str, photo_folder: Path, tmp_path: Path) -> None:
    """Models as they are; smaller batches, images of at most 64 pixels, photographs."""
    cfg = Config.fromfile(CONFIGS / name)
    algorithm = re.match(r"mixmask/(\w+?)(v2)?-mixmask", name)[1]
    assert cfg.model.type.lower() == f"mixmask{algorithm}"
    assert cfg.train_cfg.max_epochs == int(re.search(r"-(\d+)e_", name)[1])
    assert cfg.train_dataloader.batch_size == int(re.search(r"xb(\d+)-", name)[1])
    size = {"cifar100": 32, "tiny-imagenet": 64, "in1k": 224}[data_of(name)]
    grid = {32: 2, 64: 4, 224: 8}[size]
    assert cfg.model.mixmask == {"mask": "block", "grid_size": grid, "ratio": 0.5}

    pipeline = cfg.train_dataloader.dataset.pipeline
    multi = next(step for step in pipeline if step.type == "MultiView")
    for view in multi.transforms:
        assert view[0].scale == size
        view[0].scale = min(size, 64)
    shrink(cfg.train_dataloader)
    cfg.train_dataloader.dataset = dataset(photo_folder, "train", pipeline)
    knn = [hook for hook in cfg.get("custom_hooks", []) if hook.type == "OnlineProbeHook"]
    assert len(knn) == (size < 224)
    for hook in knn:
        shrink(hook.val_dataloader)
        hook.interval = 1
        hook.val_dataloader.dataset = dataset(
            photo_folder, "test", hook.val_dataloader.dataset.pipeline
        )
    runner = run(cfg, tmp_path)
    hub = runner.message_hub
    original, mixed = (hub.get_scalar(f"train/loss_{n}").current() for n in ("orig", "mixmask"))
    assert hub.get_scalar("train/loss").current() != original != mixed
    expected = ["MixMask", "UnMix"] if "unmix" in name else ["MixMask"]
    assert [type(mixer).__name__ for mixer in runner.model.mixers] == expected
    if knn:
        assert 0 <= hub.get_scalar("probe/knn_top1").current() <= 100


MIXMASK = "moco-mixmask_resnet18_1xb512-coslr-1000e_cifar100.py"
BOTH = "moco-mixmask-unmix_resnet18_1xb512-coslr-1000e_cifar100.py"
ROWS = [
    # table 1
    (MIXMASK, "model.mixmask.grid_size=16", ["MixMask(mask='block', grid_size=16, ratio=0.5"]),
    (MIXMASK, "model.mixmask.mask=random", ["MixMask(mask='random', grid_size=2, ratio=0.5"]),
    (MIXMASK, "model.mixmask.ratio=0.25", ["MixMask(mask='block', grid_size=2, ratio=0.25"]),
    (MIXMASK, "model.mixmask.ratio=0.0,1.0", ["MixMask(mask='block', grid_size=2, ratio=(0.0, 1"]),
    # table 2
    (MIXMASK, "model.unmix.prob_global=0.5", ["permutation='random'", "permutation='inverse'"]),
    (BOTH, "model.mixmask.permutation=inverse", ["permutation='inverse'"] * 2),
    # table 3
    (BOTH, "model.unmix.prob_global=0.0", ["MixMask(", "UnMix(prob_global=0.0"]),
    # table 4
    (MIXMASK, "model.mixmask=None", []),
    (MIXMASK, "model.mixmask.type=EraseMask", ["EraseMask(mask='block', grid_size=2, ratio=0.5"]),
    # table 5
    (BOTH, "model.mixmask=None", ["UnMix(prob_global=0.5"]),
]


@pytest.mark.parametrize(("name", "argument", "mixers"), ROWS)
def test_every_row_of_the_tables_is_one_argument(
    name: str, argument: str, mixers: list[str]
) -> None:
    """As README.md lists them, given the way ``tools/train.py`` takes them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    cfg = Config.fromfile(CONFIGS / "mixmask" / name)
    cfg.merge_from_dict(parser.parse_args(["--cfg-options", argument]).cfg_options)
    init_default_scope("mmpretrain")
    built = MODELS.build(cfg.model).mixers
    assert len(built) == len(mixers)
    assert all(part in repr(mixer) for mixer, part in zip(built, mixers, strict=True))


@pytest.mark.parametrize("name", names("benchmarks/resnet*.py"))
def test_benchmark_configs_run(name: str, photo_folder: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / name)
    assert cfg.train_cfg.max_epochs == int(re.search(r"-(\d+)e_", name)[1])
    classes = {"cifar100": 100, "tiny-imagenet": 200, "in1k": 1000}[data_of(name)]
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    assert cfg.val_evaluator.topk == (1, 5)
    if "in1k" in name:  # photographs have 64 pixels
        cfg.train_dataloader.dataset.pipeline[1].scale = 64
        cfg.val_dataloader.dataset.pipeline[1].scale = 64
        cfg.val_dataloader.dataset.pipeline[2].crop_size = 64
    if "semisup" in name:  # the data set as it is, with a list of images
        (tmp_path / "meta").mkdir()
        (tmp_path / "train").symlink_to(photo_folder / "train")
        images = sorted((photo_folder / "train").glob("*/*.png"))[:16]
        lines = [f"{image.parent.name}/{image.name} {n % 3}\n" for n, image in enumerate(images)]
        (tmp_path / cfg.train_dataloader.dataset.ann_file).write_text("".join(lines))
        cfg.train_dataloader.dataset.data_root = str(tmp_path)
    else:
        cfg.train_dataloader.dataset = dataset(
            photo_folder, "train", cfg.train_dataloader.dataset.pipeline
        )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        shrink(loader)
    cfg.val_dataloader.dataset = dataset(
        photo_folder, "test", cfg.val_dataloader.dataset.pipeline, 8
    )
    cfg.test_dataloader = cfg.val_dataloader
    cfg.train_cfg.val_interval = 1

    # Pretrained by the algorithm of the paper: the weights of MixMaskMoCo, as they are.
    backbone = {**cfg.model.backbone, "frozen_stages": -1, "init_cfg": None}
    pretrained = MODELS.build(backbone).state_dict()
    checkpoint = tmp_path / "pretrained.pth"
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in pretrained.items()}}, checkpoint)
    assert cfg.model.backbone.init_cfg.prefix == "backbone."
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    runner = run(cfg, tmp_path)
    assert runner.message_hub.get_scalar("train/loss").current() > 0
    assert {"accuracy/top1", "accuracy/top5"} < {
        key.removeprefix("val/") for key in runner.message_hub.log_scalars
    }
    kept = runner.model.backbone.state_dict()
    same = [torch.equal(kept[key], value) for key, value in pretrained.items()]
    assert all(same) if "linear" in name else not any(same[:1])
    if "semisup" in name:
        rates = {group["lr"] for group in runner.optim_wrapper.optimizer.param_groups}
        assert rates == ({0.02, 5.0} if "1pct" in name else {0.01, 0.2})


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
    if "voc" in name:
        assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end == 24000
        assert cfg.model.roi_head.bbox_head.num_classes == 20
    else:
        assert cfg.train_cfg.max_epochs == 12
        scales = next(step.scales for step in cfg.train_pipeline if "scales" in step)
        assert [side for _, side in scales] == [640, 672, 704, 736, 768, 800]
