"""One step, or a training run, of a row of the table in one process or as one of two.

Random choices are made to depend on what they are for, not on the process: masks on their image,
mixes on the part of the batch that a process has. What then differs between one process and two
is the plugin's or upstream's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from mim_plugins.masking import dpp
from mim_plugins.mixmask import Mix, Mixer

from .case import Builder, Case
from .cases import CASES
from .training import Setup, seed_all

BATCH = 6  # of a process; one process alone takes both processes' images


def find(name: str) -> Case:
    return next(case for case in CASES if str(case) == name)


# -- what is random ------------------------------------------------------------------------


@contextmanager
def independent_of_processes(rows: range) -> Iterator[None]:
    """Draw for every image what it would get in one process with all images.

    Args:
        rows: The images of the batch.
    """
    parts = len(rows) // BATCH
    calls = count()

    def rand(*size: Any, generator: Any = None, **options: Any) -> Tensor:
        """``torch.rand`` whose numbers for an image depend on which call and image it is."""
        size = size if isinstance(size[0], int) else tuple(size[0])
        if generator is not None or len(rows) not in size:
            return stock_rand(size, generator=generator, **options)
        dim, call = size.index(len(rows)), next(calls)
        size = (*size[:dim], *size[dim + 1 :])
        seeds = [1000 * call + row for row in rows]
        images = [stock_rand(size, generator=_generator(seed), **options) for seed in seeds]
        return torch.stack(images, dim)

    def sample_kdpp(kernel: Tensor, k: int, generator: Any = None) -> Tensor:
        one_by_one = zip(kernel.split(1), rows, strict=True)
        return torch.cat([stock_kdpp(one, k, _generator(row)) for one, row in one_by_one])

    def mix(mixer: Mixer, images: Any, generator: Any = None) -> Any:
        """Partners within the part of a process, with one mask and λ for all parts."""
        if not isinstance(images, Tensor):
            return [mix(mixer, view) for view in images]
        mixes = [stock_mix(mixer, part, _generator(5)) for part in images.chunk(parts)]
        partners = [one.permutation + BATCH * part for part, one in enumerate(mixes)]
        images = torch.cat([one.images for one in mixes])
        return Mix(images, mixes[0].lam, torch.cat(partners), mixes[0].mask)

    stock_rand, stock_kdpp, stock_mix = torch.rand, dpp.sample_kdpp, Mixer.__call__
    with (
        patch.object(torch, "rand", rand),
        patch.object(dpp, "sample_kdpp", sample_kdpp),
        patch.object(Mixer, "__call__", mix),
    ):
        yield


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- a step --------------------------------------------------------------------------------


def gather(model: nn.Module) -> None:
    """Let terms and memory banks of lightly take the whole batch, as mmpretrain's do."""
    for module in model.modules():
        if hasattr(module, "gather_distributed"):
            module.gather_distributed = True


class Step(nn.Module):
    """The losses of a model for a batch, as a forward pass that DistributedDataParallel wraps."""

    def __init__(self, case: Case, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.lightly = case.framework == "lightly"

    def forward(self, batch: Any) -> dict[str, Tensor]:
        if not self.lightly:
            return self.model(**batch, mode="loss")
        logged: dict[str, Tensor] = {}
        self.model.log = lambda name, value, **kwargs: logged.update({name: value})
        output = self.model.training_step(batch, 0)
        del self.model.log
        loss = output["loss"] if isinstance(output, dict) else output
        return {**logged, "total": loss}


def batch_of(case: Case, setup: Setup, rows: range) -> Any:
    samples = []
    for row in rows:
        np.random.seed(row)  # noqa: NPY002  masks of the data pipeline
        samples.append(setup.dataset[row])
    if case.framework == "lightly":
        return default_collate(samples)
    from mmengine.dataset import default_collate as collate

    # Before the wrapper, as MMDistributedDataParallel does it.
    with independent_of_processes(rows):
        return setup.model.data_preprocessor(collate(samples), training=True)


def one_step(name: str, builder: Builder, rows: range, find_unused: bool = False) -> dict:
    """Losses, gradients and queues of a step on these images.

    Batch norm takes running statistics, and nothing is dropped.
    """
    case = find(name)
    setup = builder()
    gather(setup.model)
    model = setup.model.eval()
    if case.framework == "lightly":
        # iBOT asks it for the number of steps. A module holds its trainer by a weak reference.
        trainer = _trainer(devices=1, max_epochs=-1)
        model.trainer = trainer
    batch = batch_of(case, setup, rows)
    step: nn.Module = Step(case, model)
    if dist.is_initialized():
        step = nn.parallel.DistributedDataParallel(
            step, broadcast_buffers=False, find_unused_parameters=find_unused
        )
    seed_all(3)
    with independent_of_processes(rows):
        losses = step(batch)
    total = losses.get("total")
    if total is None:
        total = sum(value for key, value in losses.items() if "loss" in key)
    total.backward()
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    return {
        "losses": {key: value.detach() for key, value in losses.items()},
        "gradients": {k: p.grad for k, p in parameters.items() if p.grad is not None},
        "unused": {key for key, p in parameters.items() if p.grad is None},
        "queues": dict(_queues(model)),
    }


def _queues(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a step writes, other than weights and statistics of batch norm."""
    for name, module in model.named_modules():
        for key in ("queue", "bank"):
            queue = getattr(module, key, None)
            if isinstance(queue, Tensor) and queue.numel():
                yield f"{name}.{key}", queue
                yield f"{name}.{key}_ptr", getattr(module, f"{key}_ptr")


def as_rows(rank: int) -> range:
    """The images of a process."""
    return range(rank * BATCH, (rank + 1) * BATCH)


def as_one_of_two(rank: int, name: str, builder: str, find_unused: bool) -> dict:
    return one_step(name, getattr(find(name), builder), as_rows(rank), find_unused)


# -- a training run ------------------------------------------------------------------------


def train_as_one_of_two(
    rank: int, name: str, steps: int, find_unused: bool, sharded: bool = False
) -> dict[str, Tensor]:
    """Weights after ``steps`` of upstream's own distributed training, in train mode.

    Args:
        sharded: Train with MMFullyShardedDataParallel instead of DistributedDataParallel.
    """
    case = find(name)
    setup = case.on()
    gather(setup.model)
    seed_all(3 + rank)
    if case.framework == "lightly":
        _lightning(case, setup, rank, steps, find_unused)
        weights = setup.model.state_dict()
    else:
        wrapper = _shard(setup.model) if sharded else _distribute(setup.model, find_unused)
        _mmengine(wrapper, setup, rank, steps)
        weights = {key.removeprefix("module."): p for key, p in wrapper.state_dict().items()}
    learned = {key for key, _ in case.on().model.named_parameters()}
    return {key: weights[key] for key in weights if key in learned or "queue" in key}


def _distribute(model: nn.Module, find_unused: bool) -> nn.Module:
    from mmengine.model import MMDistributedDataParallel

    return MMDistributedDataParallel(
        model, broadcast_buffers=False, find_unused_parameters=find_unused
    )


def _shard(model: nn.Module) -> nn.Module:
    """As FSDPStrategy with a full state dict does, but on the CPU."""
    from mmengine.model import MMFullyShardedDataParallel
    from torch.distributed.fsdp import StateDictType

    policy = {"type": "torch.distributed.fsdp.wrap.size_based_auto_wrap_policy"}
    wrapper = MMFullyShardedDataParallel(
        model,
        device_id=torch.device("cpu"),
        auto_wrap_policy={**policy, "min_num_params": 1000},
    )
    wrapper.set_state_dict_type(wrapper, StateDictType.FULL_STATE_DICT)
    return wrapper


def _mmengine(wrapper: nn.Module, setup: Setup, rank: int, steps: int) -> None:
    from mmengine.dataset import default_collate as collate
    from mmengine.optim import OptimWrapper

    optim_wrapper = OptimWrapper(torch.optim.AdamW(wrapper.parameters(), lr=1e-3))
    for step in range(steps):
        start = (2 * step + rank) * BATCH
        samples = [setup.dataset[row] for row in range(start, start + BATCH)]
        wrapper.train_step(collate(samples), optim_wrapper)


def features_of_shards(rank: int, name: str) -> str:
    """What a hook that takes features says of a sharded model."""
    from types import SimpleNamespace

    from mim_plugins.mmpretrain.analysis.features import extract_features

    model = _shard(find(name).on().model)
    try:
        extract_features(SimpleNamespace(model=model), torch.zeros(1, 3, 64, 64))
    except TypeError as error:
        return str(error)
    return ""


def _lightning(case: Case, setup: Setup, rank: int, steps: int, find_unused: bool) -> None:
    strategy = "ddp_find_unused_parameters_true" if find_unused else "ddp"
    trainer = _trainer(devices=2, strategy=strategy, max_steps=steps)
    trainer.fit(setup.model, DataLoader(setup.dataset, BATCH, drop_last=True))
    assert (trainer.world_size, trainer.global_rank) == (2, rank)


def _trainer(**arguments: Any) -> Any:
    from pytorch_lightning import Trainer

    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **{"max_steps": 10, "max_epochs": 3, **arguments},
    )  # fmt: skip
