"""Mixing in lightly's own MoCoV2, BYOL and SimCLR benchmark classes, unmodified.

Set ``LIGHTLY_REPO`` to a checkout of lightly's repository, as for the masked classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import nn

from mim_plugins.lightly import wrap
from mim_plugins.mixmask import EraseMask, MixMask, UnMix

from .test_lightly_benchmarks import loader, pytestmark, upstream  # noqa: F401


def small_resnet() -> nn.Module:
    """In place of resnet50: 2048 features, and an attribute ``fc`` to be replaced."""
    model = nn.Sequential()
    model.conv = nn.Conv2d(3, 32, 5, stride=4)
    model.norm = nn.BatchNorm2d(32)
    model.pool = nn.AdaptiveAvgPool2d(8)
    model.flatten = nn.Flatten()
    model.fc = nn.Identity()
    return model


CLASSES: dict[str, tuple[str, dict]] = {
    "mocov2": ("MoCoV2", {}),
    "byol": ("BYOL", {}),
    "simclr": ("SimCLR", {"knn_k": 2, "knn_t": 0.1}),
}
every_class = pytest.mark.parametrize("name", CLASSES)


def maker(name: str) -> Callable[[], LightningModule]:
    class_name, arguments = CLASSES[name]
    module = upstream(f"resnet50/{name}.py", resnet50=small_resnet)

    def make() -> LightningModule:
        torch.manual_seed(0)
        return getattr(module, class_name)(batch_size_per_device=4, num_classes=10, **arguments)

    return make


def fit(model: LightningModule, folder: Path, **arguments: Any) -> Trainer:
    seed_everything(0, verbose=False)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
        limit_val_batches=0, **arguments,
    )  # fmt: skip
    trainer.fit(model, loader((32, 32)))
    return trainer


@every_class
def test_one_step_has_the_stock_effects(name: str, tmp_path: Path) -> None:
    make = maker(name)
    stock, model = make(), wrap(make(), mixing=MixMask(), unmix=UnMix())
    start = {key: value.clone() for key, value in stock.state_dict().items()}
    # 20 epochs, as BYOL's warm-up takes 10; stopped after a step.
    trainers = [fit(each, tmp_path, max_epochs=20, max_steps=1) for each in (stock, model)]
    stock_metrics, metrics = (trainer.callback_metrics for trainer in trainers)
    assert torch.equal(metrics["train_loss"], stock_metrics["train_loss"])
    for key in ("loss_mixmask", "loss_unmix"):
        assert metrics[key].isfinite()
    assert "loss_mixmask" not in stock_metrics

    weights = model.state_dict()
    assert list(weights) == list(start)
    keys = [key for key in weights if key.startswith(("key_", "teacher_"))]
    assert bool(keys) == (name != "simclr")
    for key in keys:  # updated once, fed once
        assert torch.equal(weights[key], stock.state_dict()[key]), key
    assert any(not torch.equal(weights[key], start[key]) for key in keys) == bool(keys)
    if name == "mocov2":
        banks = [each.criterion.memory_bank for each in (stock, model)]
        assert int(banks[1].bank_ptr) == 4
        assert torch.equal(banks[0].bank, banks[1].bank)
    # The query encoder saw the mixed views and learned from them.
    for key in ("backbone.norm.running_mean", "backbone.norm.num_batches_tracked"):
        assert not torch.equal(weights[key], stock.state_dict()[key])


@every_class
@pytest.mark.parametrize("mixing", [MixMask(ratio=(0.25, 0.75)), EraseMask("mean")], ids=repr)
def test_trains(name: str, mixing: MixMask | EraseMask, tmp_path: Path) -> None:
    make = maker(name)
    model, stock = wrap(make(), mixing=mixing), make()
    before = {key: value.clone() for key, value in stock.state_dict().items()}
    trainer = fit(model, tmp_path, max_epochs=20, max_steps=6)
    assert trainer.global_step == 6
    weights = model.state_dict()
    assert list(weights) == list(before)
    assert all(value.isfinite().all() for value in weights.values())
    assert not torch.equal(weights["backbone.conv.weight"], before["backbone.conv.weight"])
    stock.load_state_dict(weights, strict=True)
    if name == "mocov2":
        assert int(model.criterion.memory_bank.bank_ptr) == 24


@every_class
def test_a_rate_of_zero_leaves_keys_as_stock(name: str, tmp_path: Path) -> None:
    """Without steps of the optimizer the keys of many steps are the stock ones."""
    make = maker(name)
    models = [make(), wrap(make(), mixing=MixMask())]
    for model in models:
        seed_everything(0, verbose=False)
        configure = model.configure_optimizers

        def still(configure: Callable = configure) -> Any:
            optimizers, _ = configure()
            for group in optimizers[0].param_groups:
                group.update(lr=0.0, weight_decay=0.0)
            return optimizers

        model.configure_optimizers = still
        fit(model, tmp_path, max_epochs=20, max_steps=4)
    stock, model = (each.state_dict() for each in models)
    for key, value in model.items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, stock[key]), key
    if name == "mocov2":
        banks = [each.criterion.memory_bank.bank for each in models]
        assert torch.allclose(banks[0], banks[1], atol=1e-6)  # shuffled otherwise
