"""The configs of configs_mmpretrain/hierarchical, run by upstream's tools at reduced size."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")

import torch
from mmengine.config import Config
from PIL import Image

import mim_plugins.mmpretrain  # noqa: F401
from mim_plugins.apps.variant_labels import main as write_labels

from .tools import CONFIGS, run_tool

FOLDER = CONFIGS / "hierarchical"


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


@pytest.mark.slow
def test_cifar_sweep_trains_scores_and_probes(photo_folder: Path, tmp_path: Path) -> None:
    """A config of each sweep by tools/train.py; one also by tools/test.py and the probe."""
    for patch, option in ((4, "mask_ratio=0.5"), (2, "masking.mask_unit=8")):
        name = f"mae_vit-mini-p{patch}"
        work_dir = tmp_path / name
        base = FOLDER / "cifar" / f"{name}_1xb256-coslr-40e_cifar-32px.py"
        few = (
            "train_cfg.max_epochs=1", "train_dataloader.batch_size=40",
            "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False",
            "train_dataloader.dataset.indices=40",
        )  # fmt: skip
        run_tool("train", base, "--work-dir", work_dir, "--cfg-options", *few,
                 f"model.backbone.{option}", CIFAR_DATA=str(photo_folder))  # fmt: skip
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
