"""Hooks on images of any channels and statistics, on labels as data sets have them, by a call."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, TRANSFORMS
from mmpretrain.structures import DataSample
from torch.utils.data import Dataset

from mim_plugins.mmpretrain import mask_picture

from ..models import ARCH, build
from ..regularizers.test_mi_mae import simmim


@DATASETS.register_module()
class RandomArrays(Dataset):
    """``n`` random images of ``channels`` channels, 32 px, with labels in turn."""

    metainfo = {"classes": ("a", "b")}  # noqa: RUF012

    def __init__(self, channels: int = 3, labels: tuple = (0, 1), scale: int = 255) -> None:
        self.images = scale * np.random.default_rng(0).random((8, 32, 32, channels))
        self.labels = labels
        self.pack = Compose([TRANSFORMS.build({"type": "PackInputs"})])

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        label = np.array(self.labels[index % len(self.labels)])
        image = self.images[index].astype(np.float32)
        return self.pack({"img": image, "gt_label": label, "sample_idx": index})


def loader(**dataset: object) -> dict:
    return {"batch_size": 4, "dataset": {"type": "RandomArrays", **dataset}}


def run(out: Path, hooks: list, **dataset: object) -> Runner:
    """Two steps of a stock MAE."""
    channels = dataset.get("channels", 3)
    model = {
        "type": "MAE",
        "data_preprocessor": {"type": "SelfSupDataPreprocessor"},
        "backbone": {
            "type": "MAEViT", "arch": ARCH, "img_size": 32, "patch_size": 8,
            "patch_cfg": {"in_channels": channels},
        },
        "neck": {
            "type": "MAEPretrainDecoder", "num_patches": 16, "patch_size": 8, "in_chans": channels,
            "embed_dim": 32, "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2,
        },
        "head": {
            "type": "MAEPretrainHead", "patch_size": 8, "in_channels": channels,
            "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"},
        },
    }  # fmt: skip
    train = loader(**dataset) | {
        "num_workers": 0,
        "persistent_workers": False,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "collate_fn": {"type": "default_collate"},
    }
    cfg = Config(
        {
            "model": model,
            "work_dir": str(out),
            "default_scope": "mmpretrain",
            "train_dataloader": train,
            "train_cfg": {"by_epoch": True, "max_epochs": 1},
            "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 1e-6}},
            "custom_hooks": hooks,
            "log_level": "ERROR",
            "experiment_name": str(out).replace("/", "_"),
            "visualizer": {
                "type": "UniversalVisualizer",
                "vis_backends": [{"type": "LocalVisBackend"}],
            },
        }
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize(("channels", "scale"), [(1, 255), (4, 255), (12, 10000)])
def test_any_channels_and_statistics(channels: int, scale: int, tmp_path: Path) -> None:
    val = loader(channels=channels, scale=scale)
    hooks = [
        {"type": "MaskVisualizationHook"},
        {"type": "EffectiveRankHook", "num_images": 4},
        {"type": "HierarchicalMaskingAnalyzer"},
        {"type": "OnlineProbeHook", "val_dataloader": val, "bank_dataloader": val},
    ]
    runner = run(tmp_path, hooks, channels=channels, scale=scale)
    assert list(tmp_path.glob("*/vis_data/vis_image/masks_1.png"))
    for name in ("effective_rank", "ssim", "fsim", "mask_ratio"):
        assert math.isfinite(runner.message_hub.get_scalar(f"analysis/{name}").current()), name
    probe = json.loads(next(tmp_path.glob("*/vis_data/online_probe.jsonl")).read_text())
    assert 0 <= probe["linear_top1"] <= 100
    assert 0 <= probe["knn_top1"] <= 100


def test_labels(tmp_path: Path) -> None:
    """-1 is ignored, others out of range are named, in every batch and the kNN bank."""
    some = loader(labels=(0, -1))
    hook = {"type": "OnlineProbeHook", "val_dataloader": some, "bank_dataloader": some}
    runner = run(tmp_path / "some", [hook], labels=(0, 1, 0, 1, -1, 1, -1, 0))
    assert math.isfinite(runner.message_hub.get_scalar("train/probe_loss").current())
    bad = {"labels": (0, 1, 0, 1, 0, 7, 0, 1)}
    with pytest.raises(ValueError, match=r"labels must be in \[0, num_classes=2\).*\[7\]"):
        run(tmp_path / "train", [hook], **bad)
    with pytest.raises(ValueError, match="neighbours: labels"):
        run(tmp_path / "bank", [hook | {"bank_dataloader": loader(**bad)}])


def test_one_call_draws_the_picture_of_a_model() -> None:
    model = build("MAEViT").train()
    images = torch.rand(3, 3, 64, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    picture = mask_picture(model, {"inputs": images}, num_images=2)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert picture.shape == (2 * 128 + 2, 4 * 128 + 6, 3)
    mask = model.backbone(images)[1][:2].bool().view(2, 8, 8)  # of the same random numbers
    where = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)
    for row in range(2):
        shown = picture[130 * row : 130 * row + 128, 130 : 130 + 128]
        assert (shown[where[row]] == 128).all()
    samples = [DataSample() for _ in images]
    for sample in samples:
        sample.set_field(torch.eye(8, dtype=torch.bool), "mask")
    given = mask_picture(model, {"inputs": images, "data_samples": samples}, num_images=1)
    assert given.shape == (128, 4 * 128 + 6, 3)


def test_of_several_masks_the_first_is_shown() -> None:
    """Complementary masks make several rows of masks and tokens of every image."""
    masking = {"type": "ComplementaryMasking", "num_masks": 4}
    algorithm = {"type": "RegularizedMAE", "regularizers": [{"type": "UniformityHead"}]}
    model = build("MaskedMAEViT", algorithm, masking=masking)
    images = torch.rand(3, 3, 64, 64)
    torch.manual_seed(5)
    picture = mask_picture(model, {"inputs": images}, num_images=2)
    assert picture.shape == (2 * 128 + 2, 4 * 128 + 6, 3)
    torch.manual_seed(5)
    mask = model.backbone(images)[1][:2].bool().view(2, 8, 8)
    where = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)
    for row in range(2):
        shown = picture[130 * row : 130 * row + 128, 130 : 130 + 128]
        assert (shown[where[row]] == 128).all()


def test_masks_that_the_algorithm_draws_are_shown_whatever_the_data_hold() -> None:
    masking = {"type": "ComplementaryMasking", "num_masks": 2}
    algorithm = {"type": "MISimMIM", "masking": masking}
    algorithm |= {"data_preprocessor": {"type": "SelfSupDataPreprocessor"}}
    model = simmim(algorithm, swin=False)
    samples = [DataSample() for _ in range(3)]
    for sample in samples:
        sample.set_field(torch.eye(8, dtype=torch.bool), "mask")
    masks: list = []
    forward = model.backbone.forward
    model.backbone.forward = lambda images, mask: masks.append(mask) or forward(images, mask)
    batch = {"inputs": torch.rand(3, 3, 64, 64), "data_samples": samples}
    picture = mask_picture(model, batch, num_images=2)
    assert picture.shape == (2 * 128 + 2, 4 * 128 + 6, 3)
    where = masks[0].bool().repeat_interleave(16, 1).repeat_interleave(16, 2)
    for row in range(2):
        shown = picture[130 * row : 130 * row + 128, 130 : 130 + 128]
        assert (shown[where[row]] == 128).all()
