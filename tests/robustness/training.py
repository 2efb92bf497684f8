"""Trains a model the way its framework does, and notes all that one can compare afterwards."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

BATCH = 4


@dataclass
class Setup:
    """A model, its weights drawn under a fixed seed, and what it is trained on."""

    model: nn.Module
    dataset: Dataset


@dataclass
class Run:
    """What a training run left behind."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    logged: Counter[str] = field(default_factory=Counter)  # how often each name was logged
    draws: int = 0  # random tensors drawn
    rng: tuple = ()

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()


class CountDraws(TorchDispatchMode):
    """Counts operators that draw from torch's random generators."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def rng_states() -> tuple:
    """The states of all generators in a form that can be compared."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        random.getstate(),
        (numpy_state[1].tobytes(), *numpy_state[2:]),
        torch.get_rng_state().numpy().tobytes(),
    )


def train_mmpretrain(setup: Setup, steps: int, workers: int = 0, count: bool = False) -> Run:
    """Steps of mmengine's ``train_step`` on a shuffled data loader.

    Args:
        setup: What to train.
        steps: Number of optimiser steps.
        workers: Of the data loader.
        count: Whether to count what is drawn, which takes time.
    """
    from mmengine.dataset import default_collate
    from mmengine.optim import OptimWrapper

    run = Run(setup.model.train())
    wrapper = OptimWrapper(torch.optim.AdamW(run.model.parameters(), lr=1e-3))
    seed_all(1)
    loader = DataLoader(
        setup.dataset, BATCH, shuffle=True, num_workers=workers, collate_fn=default_collate
    )
    counter = CountDraws()
    with counter if count else nullcontext():
        for batch in islice(_again(loader), steps):
            values = run.model.train_step(batch, wrapper)
            run.losses.append(values["loss"].item())
            run.logged.update(list(values))
    run.draws, run.rng = counter.number, rng_states()
    return run


def _again(loader: DataLoader) -> Any:
    while True:
        yield from loader


def train_lightly(setup: Setup, steps: int, workers: int = 0, count: bool = False) -> Run:
    """Lightning's own Trainer on a shuffled data loader; arguments as above."""
    import pytorch_lightning as pl

    run = Run(setup.model.train())
    stock_log = run.model.log

    def log(name: str, *args: Any, **kwargs: Any) -> None:
        run.logged[name] += 1
        stock_log(name, *args, **kwargs)

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            run.losses.append(outputs["loss"].item())

    run.model.log = log
    seed_all(1)
    loader = DataLoader(setup.dataset, BATCH, shuffle=True, num_workers=workers)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, callbacks=[Losses()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    counter = CountDraws()
    with counter if count else nullcontext():
        trainer.fit(run.model, loader)
    run.draws, run.rng = counter.number, rng_states()
    del run.model.log
    return run


TRAIN = {"mmpretrain": train_mmpretrain, "lightly": train_lightly}
