"""The configs of configs_mmpretrain/hierarchical, run by upstream's tools at reduced size."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

import mim_plugins.mmpretrain  # noqa: F401
from mim_plugins.apps.variant_labels import main as write_labels

from .tools import CONFIGS, CROP, RUNTIME, TINY_CLASSIFIER, TINY_MAE, TINY_VIT, loader, run_tool

FOLDER = CONFIGS / "hierarchical"
TINY_P8 = f"""
model = dict(
    backbone=dict(arch={TINY_VIT}, img_size=64),
    neck=dict(num_patches=64, embed_dim=32, decoder_embed_dim=32, decoder_depth=1,
              decoder_num_heads=2))
"""
TINY_SWIN = """
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=16, depths=[1] * 4, num_heads=[1] * 4), img_size=64,
        stage_cfgs=dict(block_cfgs=dict(window_size=2))),
    neck=dict(in_channels=128))
"""
PROBE = """
model['backbone'].update(init_cfg=None, frozen_stages=2)
model['neck'] = dict(input_features=32)
model['head'] = dict(in_channels=32)
"""
MASKS = (
    "dict(type='SimMIMMaskGenerator', input_size=64, mask_patch_size=32, model_patch_size=4, "
    "mask_ratio=0.5)"
)


def names(pattern: str) -> list[str]:
    return sorted(path.name for path in FOLDER.glob(pattern))


def build(config: Path, work_dir: Path) -> Runner:
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.experiment_name = str(work_dir), f"{work_dir.name}-{config.stem}"
    return Runner.from_cfg(cfg)


@pytest.mark.parametrize("name", names("*.py"))
def test_pretrain_configs_run(name: str, photo_folder: Path, tmp_path: Path) -> None:
    tiny = TINY_MAE if "p16" in name else TINY_P8
    masks = []
    if name.startswith("simmim"):
        tiny, masks = TINY_SWIN, [MASKS]
    config = tmp_path / "config.py"
    data = "train_dataloader = " + loader(photo_folder, "train", 16, CROP, *masks)
    config.write_text(f"_base_ = {str(FOLDER / name)!r}\n" + tiny + data + RUNTIME)
    runner = build(config, tmp_path)
    masks_seen: list[torch.Tensor] = []
    runner.model.backbone.register_forward_hook(
        lambda module, args, out: masks_seen.append(out[1]) if len(out) > 1 else None
    )
    runner.train()
    assert runner.iter == 2
    assert torch.isfinite(torch.tensor(runner.message_hub.get_scalar("train/loss").current()))
    ratio, unit = re.search(r"ratio(\d+)", name), re.search(r"unit(\d+)", name)
    if ratio:
        kept = int(64 * (1 - int(ratio[1]) / 100))
        assert masks_seen[0].sum(dim=1).tolist() == [64 - kept] * 8
    if unit:
        assert runner.model.backbone.patch_resolution == (8, 8)
        side = int(unit[1]) // 8
        blocks = masks_seen[0].view(8, 8 // side, side, 8 // side, side).float().mean(dim=(2, 4))
        assert set(blocks.unique().tolist()) == {0.0, 1.0}  # units are whole
        assert masks_seen[0].mean() == pytest.approx(0.75, abs=0.01)
    if "boundary" in name:
        assert runner.model.head.width_px > 0


@pytest.mark.parametrize("patch", [16, 8])
def test_reconstruction_configs_run(patch: int, photo_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    base = FOLDER / "benchmarks" / f"mae_vit-base-p{patch}_reconstruction_in1k.py"
    data = f"""
test_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False,
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root={str(photo_folder)!r}, data_prefix='test',
        indices=12, pipeline=[
            dict(type='LoadImageFromFile'), dict(type='CenterCrop', crop_size=64),
            dict(type='PackInputs')]))
"""
    tiny = TINY_MAE if patch == 16 else TINY_P8
    config.write_text(f"_base_ = {str(base)!r}\n" + tiny + data)
    metrics = build(config, tmp_path).test()
    assert set(metrics) == {f"reconstruction/{name}" for name in ("mse", "psnr", "ssim", "fsim")}


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's 1000 (empty) class folders, and a few images of each variant."""
    root = tmp_path_factory.mktemp("data")
    for number in range(1000):
        (root / "imagenet/train" / f"n{number:08d}").mkdir(parents=True)

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 72), (number % 256, 40, 90)).save(path)

    for number in (7, 3, 512):
        for name in ("imagenet-r", "imagenet-a", "imagenet-sketch"):
            write(root / name / f"n{number:08d}" / "a.jpg")
        write(root / "imagenet-v2" / str(number) / "a.jpg")
    for folder in ("banana", "bicycle", "paper"):
        write(root / "objectnet/images" / folder / "a.png")
    mappings = root / "objectnet/mappings"
    mappings.mkdir()
    (mappings / "folder_to_objectnet_label.json").write_text(
        json.dumps({"banana": "Banana", "bicycle": "Bicycle", "paper": "Paper"})
    )
    two = (
        "mountain bike, all-terrain bike, off-roader; bicycle-built-for-two, tandem bicycle, tandem"
    )
    (mappings / "objectnet_to_imagenet_1k.json").write_text(
        json.dumps({"Banana": "banana", "Bicycle": two})
    )
    return root


@pytest.mark.parametrize("name", names("benchmarks/vit-base-p16_linear_*.py"))
def test_variant_configs_run(name: str, variants: Path, tmp_path: Path) -> None:
    base = FOLDER / "benchmarks" / name
    full = Config.fromfile(base)
    config = tmp_path / "config.py"
    text = f"_base_ = {str(base)!r}\n" + TINY_CLASSIFIER + PROBE
    text += "test_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=2)\n"
    if "shape-bias" in name:
        data = tmp_path / "cue-conflict"
        for category in ("cat", "dog"):
            (data / category).mkdir(parents=True)
            Image.new("RGB", (80, 72)).save(data / category / f"{category}1-dog2.png")
        text += f"test_evaluator = dict(csv_dir={str(tmp_path / 'csv')!r})\n"
    else:
        data = variants / Path(full.test_dataloader.dataset.data_root).name
        write_labels([str(variants / "imagenet/train"), str(data)])
    text += f"test_dataloader['dataset'] = dict(data_root={str(data)!r})\n"
    config.write_text(text)
    # The tests' model sees 64 pixels.
    runner = build(config, tmp_path)
    for transform in runner.test_loop.dataloader.dataset.pipeline.transforms:
        if type(transform).__name__ == "CenterCrop":
            transform.crop_size = (64, 64)
    metrics = runner.test()
    assert "accuracy/top1" in metrics
    dataset = runner.test_loop.dataloader.dataset
    if "shape-bias" in name:
        lines = (tmp_path / "csv/cue_conflict_mae_session-1.csv").read_text().splitlines()
        assert len(lines) == 3
        assert lines[1].endswith("cat1-dog2.png")
    elif "objectnet" in name:
        assert [dataset[i]["data_samples"].gt_label.item() for i in range(len(dataset))] == [954]
    else:
        assert sorted(dataset.get_data_info(i)["gt_label"] for i in range(3)) == [3, 7, 512]


def test_variant_labels_refuse_what_they_do_not_know(
    variants: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "cats").mkdir()
    for arguments, message in (
        ([variants / "imagenet/train", tmp_path], "no class of ImageNet"),
        ([variants, tmp_path], "1000 class folders"),
    ):
        with pytest.raises(SystemExit):
            write_labels([str(path) for path in arguments])
        assert message in capsys.readouterr().err


def test_p8_probe_runs(photo_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    name = "vit-base-p8_8xb2048-linear-coslr-90e_in1k.py"
    config.write_text(
        f"_base_ = {str(FOLDER / 'benchmarks' / name)!r}\n"
        + f"model = dict(backbone=dict(arch={TINY_VIT}, img_size=64))\n"
        + PROBE
        + f"train_dataloader = {loader(photo_folder, 'train', 16, CROP)}"
        + f"val_dataloader = {loader(photo_folder, 'test', 16)}"
        + "test_dataloader = val_dataloader\n"
        + RUNTIME
    )
    runner = build(config, tmp_path)
    runner.train()
    assert runner.model.backbone.patch_resolution == (8, 8)


@pytest.mark.slow
def test_cifar_sweep_trains_scores_and_probes(photo_folder: Path, tmp_path: Path) -> None:
    """A config of each sweep by tools/train.py; one also by tools/test.py and the probe."""
    for name, patch in (("ratio50_vit-mini-p4", 4), ("unit8_vit-mini-p2", 2)):
        work_dir = tmp_path / name
        base = FOLDER / "cifar" / f"mae-{name}_1xb256-coslr-40e_cifar-32px.py"
        few = (
            "train_cfg.max_epochs=1", "train_dataloader.batch_size=40",
            "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False",
            "train_dataloader.dataset.indices=40",
        )  # fmt: skip
        run_tool("train", base, "--work-dir", work_dir, "--cfg-options", *few,
                 CIFAR_DATA=str(photo_folder))  # fmt: skip
        log = "".join(p.read_text() for p in work_dir.glob("*/vis_data/hierarchical_masking.jsonl"))
        figures = json.loads(log)
        assert figures["mask_ratio"] == pytest.approx(0.5 if patch == 4 else 0.75)
        assert figures["lowest"] == (1 if patch == 4 else 3)  # 8 pixels are 4 x 4 patches of 2
        if patch == 2:
            continue
        output = run_tool(
            "test", base, work_dir / "epoch_1.pth", "--work-dir", tmp_path / "t", "--cfg-options",
            "test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False",
            "test_dataloader.dataset.indices=20", CIFAR_DATA=str(photo_folder),
        )  # fmt: skip
        assert "reconstruction/ssim" in output
        probe = FOLDER / "cifar" / "vit-mini-p4_1xb256-linear-coslr-20e_cifar-32px.py"
        output = run_tool(
            "train", probe, "--work-dir", tmp_path / f"{name}-probe", "--cfg-options", *few,
            "val_dataloader.num_workers=0",
            "val_dataloader.persistent_workers=False", "train_cfg.val_interval=1",
            CIFAR_DATA=str(photo_folder), CIFAR_CLASSES="15",
            CIFAR_CHECKPOINT=str(work_dir / "epoch_1.pth"),
        )  # fmt: skip
        assert "accuracy/top1" in output


@pytest.mark.parametrize("name", names("cifar/mae-*.py"))
def test_cifar_configs_are_the_sweeps(name: str) -> None:
    cfg = Config.fromfile(FOLDER / "cifar" / name)
    ratio, unit = re.search(r"ratio(\d+)", name), re.search(r"unit(\d+)", name)
    if ratio:
        assert cfg.model.backbone.mask_ratio == int(ratio[1]) / 100
    if unit:
        assert cfg.model.backbone.masking.mask_unit == int(unit[1])
    patch = int(re.search(r"-p(\d)", name)[1])
    assert cfg.model.backbone.patch_size == cfg.model.head.patch_size == patch
    assert cfg.model.neck.num_patches == (32 // patch) ** 2
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == 40


def test_coco_config_and_its_pyramid(tmp_path: Path) -> None:
    from mmengine.registry import MODELS

    from mim_plugins.mmpretrain import ViTPyramid

    torch.manual_seed(0)
    pyramid = MODELS.build({"type": "ViTPyramid", "embed_dims": 8})
    assert isinstance(pyramid, ViTPyramid)
    maps = pyramid([torch.rand(2, 8, 6, 4) for _ in range(4)])
    assert [tuple(each.shape[2:]) for each in maps] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    with pytest.raises(ValueError, match="4 feature maps"):
        pyramid([torch.rand(2, 8, 6, 4)])
    with pytest.raises(ValueError, match="embed_dims"):
        ViTPyramid(0)
    if find_spec("mmdet") is None:
        pytest.skip("mmdet is not installed")
    cfg = Config.fromfile(
        FOLDER / "benchmarks/mask-rcnn_vit-base-p16_fpn_32xb2-amp-lsj-45e_coco.py"
    )
    assert cfg.train_cfg.max_epochs == 45
    assert cfg.model.type == "MaskRCNN"
    assert [each.type for each in cfg.model.neck] == ["ViTPyramid", "FPN"]
    assert "depth" not in cfg.model.backbone
