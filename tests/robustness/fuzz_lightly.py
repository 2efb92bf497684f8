"""Every public component of the lightly adapter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import mim_plugins.lightly as adapter
from mim_plugins.masking import RandomMasking

from ..lightly import siamese
from ..lightly.modules import MAE
from .fuzz import FAMILIES as FREE
from .fuzz import Component, component, finite, images, in_family


class Photos(Dataset):
    """Four images of 32 x 32 pixels, in three classes."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return [images()[index]], index % 3


def step(model: pl.LightningModule) -> None:
    views = [images(), images().flip(3)] if isinstance(model, siamese.Siamese) else [images()]
    loss = model.training_step((views, torch.arange(4) % 3, []), 0)
    loss.backward()
    finite([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])


def wrapped(**arguments: Any) -> pl.LightningModule:
    """A MAE, or for mixing MoCo, with other arguments that make a valid call of ``wrap``."""
    if {"mixing", "unmix"} & set(arguments):
        return adapter.wrap(siamese.MoCo(), **arguments)
    return adapter.wrap(MAE(), **{"masking": RandomMasking(patch_size=4), **arguments})


def boundary(**arguments: Any) -> MAE:
    model = MAE()
    model.criterion = adapter.BoundaryCriterion(model, **arguments)
    return model


def fit(callback: pl.Callback) -> None:
    """An epoch of MAE under Lightning's Trainer."""
    model = MAE()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, callbacks=[callback],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(model, DataLoader(Photos(), 2))
    finite(dict(model.state_dict()))


def masks(function: Any, **arguments: Any) -> Any:
    """Called at once, as these functions are; what they return is looked at later."""
    return function(images(), **arguments)


def indices(made: Any) -> None:
    keep, removed = made if isinstance(made, tuple) else (~made, made)
    assert keep.numel()
    assert removed.numel()


FUNCTIONS: dict[str, dict[str, Any]] = {
    "token_mask": {"size": (4, 65), "mask_ratio": 0.75, "masking": RandomMasking(patch_size=4)},
    "dpp_token_mask": {"size": (4, 65)},
    "dpp_block_mask": {"size": (4, 8, 8)},
}
FAMILIES: tuple[tuple[Any, Any], ...] = (
    (pl.Callback, fit),
    *FREE,
)


def components() -> Iterator[Component]:
    for name in adapter.__all__:
        thing = getattr(adapter, name)
        if name == "wrap":
            yield component(f"lightly.{name}", thing, wrapped, step)
        elif name == "BoundaryCriterion":
            yield component(f"lightly.{name}", thing, boundary, step)
        elif name == "mask_picture":
            continue  # MaskVisualization by itself, which is fuzzed
        elif name in FUNCTIONS:
            build = partial(masks, thing)
            yield component(f"lightly.{name}", thing, build, indices, **FUNCTIONS[name])
        else:
            (use,) = in_family(thing, FAMILIES)
            yield component(f"lightly.{name}", thing, thing, use)
