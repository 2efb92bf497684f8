"""lightly's own benchmark classes, unmodified, from a checkout of its repository.

Set ``LIGHTLY_REPO`` to the checkout; its files are not part of lightly's wheel.
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import torch
from pytorch_lightning import Trainer, seed_everything
from timm.models.vision_transformer import VisionTransformer

from mim_plugins.lightly import wrap
from mim_plugins.masking import DPPMasking, RandomMasking

REPOSITORY = os.environ.get("LIGHTLY_REPO")
pytestmark = pytest.mark.skipif(
    REPOSITORY is None, reason="LIGHTLY_REPO is not set to a checkout of lightly's repository"
)


def upstream(path: str, **vits: object) -> ModuleType:
    """Import a file of the checkout, with small models in place of timm's constructors."""
    file = Path(str(REPOSITORY)) / "benchmarks" / "imagenet" / path
    spec = importlib.util.spec_from_file_location(f"lightly_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, vit in vits.items():
        assert hasattr(module, name)
        setattr(module, name, vit)
    return module


def small_vit(dim: int, **kwargs: object) -> VisionTransformer:
    kwargs.pop("pretrained", None)
    return VisionTransformer(
        img_size=kwargs.pop("img_size", 64),
        patch_size=8,
        embed_dim=dim,
        depth=1,
        num_heads=2,
        **kwargs,
    )


def loader(sizes: tuple[int, ...]) -> torch.utils.data.DataLoader:
    generator = torch.Generator().manual_seed(0)
    dataset = [
        ([torch.rand(3, size, size, generator=generator) for size in sizes], index % 10, str(index))
        for index in range(8)
    ]
    return torch.utils.data.DataLoader(dataset, batch_size=4)


def fit(model: object, data: torch.utils.data.DataLoader, epochs: int, folder: Path) -> None:
    seed_everything(0, verbose=False)
    Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
        limit_val_batches=0,
    ).fit(model, data)  # fmt: skip


def test_mae_class(tmp_path: Path) -> None:
    module = upstream("vitb16/mae.py", vit_base_patch16_224=lambda: small_vit(768))

    def make() -> object:
        torch.manual_seed(0)
        return module.MAE(batch_size_per_device=4, num_classes=10)

    stock, random, dpp = make(), make(), make()
    wrap(random, masking=RandomMasking(patch_size=8))
    wrap(dpp, masking=DPPMasking(patch_size=8, tau=0.0))
    for model in (stock, random, dpp):
        fit(model, loader((64,)), 40, tmp_path)  # its warm-up needs 40 epochs
    weights = stock.state_dict()
    assert list(random.state_dict()) == list(dpp.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in random.state_dict().items())
    assert not all(torch.equal(value, weights[key]) for key, value in dpp.state_dict().items())
    make().load_state_dict(dpp.state_dict(), strict=True)
    assert type(make()) is module.MAE


def test_ibot_class(tmp_path: Path) -> None:
    module = upstream(
        "vitb16/ibot.py",
        vit_small_patch16_224=lambda **kwargs: small_vit(
            384, **{key: value for key, value in kwargs.items() if key == "dynamic_img_size"}
        ),
    )
    torch.manual_seed(0)
    model = module.IBOT(batch_size_per_device=4, num_classes=10)
    keys = list(model.state_dict())
    wrap(model, masking=DPPMasking(mask_ratio=0.7, patch_size=8, tau=0.5))
    masks = []
    criterion = model.patch_criterion.forward

    def record(*args: object, **kwargs: object) -> object:
        masks.append(kwargs["mask"])
        return criterion(*args, **kwargs)

    model.patch_criterion.forward = record
    fit(model, loader((64, 64, 32, 32)), 10, tmp_path)
    assert list(model.state_dict()) == keys
    counts = torch.cat([mask.flatten(1).sum(dim=1) for mask in masks])
    assert len(counts) == 10 * 2 * 8
    assert (counts > 0).sum() == len(counts) // 2  # masking probability 0.5
    shares = counts[counts > 0] / 64
    assert shares.min() >= 0.64
    assert shares.max() <= 0.75
