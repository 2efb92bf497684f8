"""``--paper`` of the lightly examples: one optimiser step at the published size, and the schedule.

Widths, pixels, epochs and accumulation are the published ones. Batches and the depth of a ViT
are cut down once the script has said how large they should be: ViTs take their step with one
block, ResNet-18 whole.
"""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import pytorch_lightning as pl
import torch
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
from timm.models.vision_transformer import VisionTransformer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Subset

EXAMPLES = Path(__file__).parents[1] / "examples_lightly"
BATCHES = 97  # of an epoch: as many as CIFAR has of 512 images


def shallow(kind: type, *keys: str, seen: list, patch: pytest.MonkeyPatch) -> None:
    """Its networks get one block; what they should have is seen."""
    build = kind.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        seen.append(tuple(options[key] for key in ("embed_dim", "depth", "num_heads", *keys)))
        build(self, *args, **{**options, "depth": 1})

    patch.setattr(kind, "__init__", init)


def cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


def warm_cosine(epochs: int, warmup: int = 0, end: float = 0.0) -> Callable[[float], float]:
    def factor(epoch: float) -> float:
        if epoch < warmup:
            return epoch / warmup
        return end + (1 - end) * cosine((epoch - warmup) / (epochs - warmup))

    return factor


def simmim(epochs: int, milestone: int) -> Callable[[float], float]:
    """Ten epochs of warm-up from 5e-7 for 1e-4; a tenth after the milestone."""

    def factor(epoch: float) -> float:
        warm = 5e-7 / 1e-4 + (1 - 5e-7 / 1e-4) * min(epoch / 10, 1.0)
        return warm * (1.0 if epoch < milestone else 0.1)

    return factor


def wmse(epoch: float) -> float:
    """500 iterations of warm-up; x 0.2 at 950 and at 975 of 1000 epochs."""
    return min(epoch * BATCHES / 500, 1.0) * (0.2 if epoch >= 950 else 1) * (
        0.2 if epoch >= 975 else 1
    )  # fmt: skip


@dataclass(frozen=True)
class Setting:
    batch: int  # images on a device at a time
    accumulate: int
    epochs: int
    rate: float  # on one device
    factor: Callable[[float], float]
    optimizer: str
    decay: float
    betas: tuple[float, float] | None  # or (momentum,)
    matrices_only: bool  # decay
    views: tuple[int, ...]  # pixels
    vit: tuple[tuple[int, ...], ...]  # width, depth, heads, pixels of a patch; the decoder's
    small: int = 2  # images at a time in the test


VIT_B = (768, 12, 12, 16)
DECODER = (512, 8, 16)
MAE = {"decay": 0.05, "betas": (0.9, 0.95), "matrices_only": True, "optimizer": "AdamW"}
SIMMIM = {**MAE, "betas": (0.9, 0.999), "accumulate": 1, "views": (224,), "vit": (VIT_B,)}
CIFAR = {"accumulate": 1, "epochs": 1000, "views": (32, 32), "vit": (), "batch": 512}
CIFAR |= {"matrices_only": False}
SGD = {**CIFAR, "optimizer": "SGD", "betas": None, "decay": 5e-4}
ADAM = {**CIFAR, "optimizer": "Adam", "betas": (0.9, 0.999), "decay": 1e-6}
# On 8 GPUs where 128 x 4 images make MAE's 4096; iBOT's rate is for 8 x 32.
PAPERS: dict[str, tuple[str, list[str], Setting]] = {
    name: (script, arguments, Setting(**values))  # type: ignore[arg-type]
    for name, script, arguments, values in (
        ("dpp-mae", "mae_dpp.py", [], {
            **MAE, "batch": 128, "accumulate": 4, "epochs": 300, "rate": 1.5e-4 * 4096 / 256,
            "factor": warm_cosine(300, 40), "views": (224,), "vit": (VIT_B, DECODER)}),
        ("mi-mae", "mi_mae.py", [], {
            **MAE, "batch": 128, "accumulate": 4, "epochs": 400, "rate": 1.5e-4 * 4096 / 256,
            "factor": warm_cosine(400, 40), "views": (224,), "vit": (VIT_B, DECODER)}),
        ("u-mae", "umae.py", [], {
            **MAE, "batch": 4096, "accumulate": 1, "epochs": 2000, "rate": 1.5e-4 * 4096 / 256,
            "factor": warm_cosine(2000, 40), "views": (32,),
            "vit": ((192, 12, 3, 4), (192, 4, 3))}),
        ("u-simmim", "usimmim.py", [], {
            **SIMMIM, "batch": 128, "epochs": 200, "rate": 1e-4 * 128 / 512,
            "factor": simmim(200, 175)}),
        ("dpp-simmim", "simmim_dpp.py", [], {
            **SIMMIM, "batch": 512, "epochs": 800, "rate": 1e-4, "factor": simmim(800, 700)}),
        ("dpp-ibot", "ibot_dpp.py", [], {
            **MAE, "betas": (0.9, 0.999), "batch": 32, "accumulate": 1, "epochs": 100,
            "rate": 5e-4 / 8, "factor": warm_cosine(100, 10, 1e-6 / (5e-4 / 8)), "decay": 0.04,
            "views": (224,) * 2 + (96,) * 10, "vit": ((384, 12, 6, 16),)}),
        ("mixmask-moco", "siamese_mixmask.py", ["--algorithm", "moco"], {
            **SGD, "rate": 0.06, "factor": warm_cosine(1000), "small": 8}),
        ("mixmask-simsiam", "siamese_mixmask.py", ["--algorithm", "simsiam"], {
            **SGD, "rate": 0.03, "factor": warm_cosine(1000, 10)}),
        ("mixmask-byol", "siamese_mixmask.py", ["--algorithm", "byol"], {
            **ADAM, "rate": 3e-3, "factor": wmse}),
        ("mixmask-simclr", "siamese_mixmask.py", ["--algorithm", "simclr"], {
            **ADAM, "rate": 3e-3, "factor": wmse}),
    )
}  # fmt: skip


class Stepped(Exception):
    """The first optimiser step is done."""


def test_every_example_is_in_the_table() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {script for script, _, _ in PAPERS.values()}


@pytest.mark.parametrize("name", PAPERS)
def test_paper(
    name: str, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, arguments, published = PAPERS[name]
    images = sorted((photo_folder / "train").glob("*/*.png"))
    (tmp_path / "data/one").mkdir(parents=True)
    for number in range(BATCHES * published.small):
        (tmp_path / f"data/one/{number}.png").symlink_to(images[number % len(images)])
    said: dict[str, Any] = {}
    schedulers: list[LambdaLR] = []
    trainers: list[pl.Trainer] = []
    init, fit = LambdaLR.__init__, pl.Trainer.fit

    class Small(DataLoader):
        def __init__(self, dataset: Any, batch_size: int, **options: Any) -> None:
            said.update(batch=batch_size, views=[view.shape[-1] for view in dataset[0][0]])
            options.update(num_workers=0, persistent_workers=False)
            part = Subset(dataset, range(BATCHES * published.small))
            super().__init__(part, batch_size=published.small, **options)

    def record(self: LambdaLR, *args: Any, **options: Any) -> None:
        schedulers.append(self)
        init(self, *args, **options)

    def record_fit(self: pl.Trainer, *args: Any, **options: Any) -> None:
        trainers.append(self)
        fit(self, *args, **options)

    def stop(optimizer: torch.optim.Optimizer, *args: Any) -> None:
        said["optimizer"] = optimizer
        raise Stepped

    monkeypatch.setattr(torch.utils.data, "DataLoader", Small)
    monkeypatch.setattr(LambdaLR, "__init__", record)
    networks: list[tuple[int, ...]] = []
    shallow(VisionTransformer, "patch_size", seen=networks, patch=monkeypatch)
    shallow(MaskedVisionTransformerDecoderTIMM, seen=networks, patch=monkeypatch)
    monkeypatch.setattr(pl.Trainer, "fit", record_fit)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    argv = [script, "--paper", "--data", "data", *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    handle = register_optimizer_step_post_hook(stop)
    try:
        with pytest.raises(Stepped):
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    finally:
        handle.remove()

    assert (said["batch"], tuple(said["views"])) == (published.batch, published.views)
    assert networks == [*published.vit]
    steps = BATCHES * published.epochs
    if trainers:  # but for the plain loop
        assert trainers[0].max_epochs == published.epochs
        assert trainers[0].accumulate_grad_batches == published.accumulate
        steps = int(trainers[0].estimated_stepping_batches)
        assert steps == math.ceil(BATCHES / published.accumulate) * published.epochs
    optimizer = said["optimizer"]
    assert type(optimizer).__name__ == published.optimizer
    groups = optimizer.param_groups
    assert groups[0]["initial_lr"] == pytest.approx(published.rate)
    if published.betas:
        assert groups[0]["betas"] == published.betas
    else:
        assert groups[0]["momentum"] == 0.9
    weights = [value for group in groups for value in group["params"]]
    if not published.vit:  # CIFAR's stem
        assert any(value.shape == (64, 3, 3, 3) for value in weights)
    assert all(value.isfinite().all() for value in weights)
    for group in groups:
        assert group["weight_decay"] in (0.0, pytest.approx(published.decay))
        if published.matrices_only:
            assert not group["weight_decay"] or all(value.ndim > 1 for value in group["params"])
        else:
            assert group["weight_decay"]

    (scheduler,) = schedulers
    assert scheduler.optimizer is optimizer
    factor = scheduler.lr_lambdas[0]
    for step in sorted({*range(0, steps - 1, 53), *range(min(600, steps - 1))}):
        # Schedules count steps from 0 or from 1.
        near = [published.factor((step + n) * published.epochs / steps) for n in (0, 1)]
        assert min(near) - 1e-6 <= factor(step) <= max(near) + 1e-6, step
