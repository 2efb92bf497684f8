"""Exact resumption after an interruption."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import numpy as np
import torch
from lightly.models.modules.memory_bank import MemoryBankModule
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from .._check import check_int
from .._seed import check_loader, epoch_seed


class EpochSeed(Callback):
    """Seeds every epoch anew, so that ``ckpt_path`` continues as if nothing had happened.

    Lightning saves no random states: a resumed run draws other masks and augmentations than
    the uninterrupted one. With this callback they depend on the seed, the epoch and the rank
    alone, so that nothing needs to be saved. Resume from a checkpoint of the end of an
    epoch, as ``ModelCheckpoint`` writes them by default. From within one
    (``every_n_train_steps``, ``val_check_interval``) nobody can restore which batches were
    seen: the run goes on, seeded, with a warning that it is not the same.

    Python, numpy and torch are seeded before the epoch's data-loader iterator is made. The
    one of the first epoch Lightning makes earlier, before any callback knows the epoch to be
    resumed; it is made again.

    Args:
        seed: Default: what ``seed_everything(seed)`` was given.

    Raises:
        TypeError: If ``seed`` is no int.
        ValueError: If ``seed`` is negative; when training starts, if there is no seed, epochs
            have no end, or a data loader has ``persistent_workers=True``, whose random states
            nobody can restore.

    Example:
        >>> Trainer(callbacks=[EpochSeed(0)]).fit(
        ...     model, loader, ckpt_path="last"
        ... )  # doctest: +SKIP
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = None if seed is None else check_int("seed", seed, 0)
        self._base = 0
        self._has_started = False  # an epoch, since training started
        self._first: int | None = None  # the epoch whose iterator Lightning made before its start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check seed and data loaders."""
        found = self.seed if self.seed is not None else os.environ.get("PL_GLOBAL_SEED")
        if found is None:
            raise ValueError(
                "EpochSeed needs a seed: EpochSeed(0), or seed_everything(0) before, got None"
            )
        self._base = int(found)
        if math.isinf(trainer.num_training_batches):
            raise ValueError(
                "EpochSeed needs epochs that end, got a data loader without length: set "
                "limit_train_batches"
            )
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None  # since the loaders are set up
        for loader in fetcher.combined_loader.flattened:
            check_loader(loader)
        # Lightning makes later iterators after on_train_epoch_start, but keeps this one.
        self._first = trainer.current_epoch
        self._has_started = False
        self._seed(trainer, trainer.global_step)  # for the rest of an epoch, if there is one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed this process; its workers get theirs from it."""
        self._has_started = True
        self._seed(trainer, trainer.current_epoch)
        # Lightning keeps that iterator, but for a second fit() that is no resumption.
        keeps_it = not trainer.current_epoch or trainer.fit_loop.is_resuming
        if trainer.current_epoch == self._first and keeps_it:
            fetcher = trainer.fit_loop._data_fetcher
            assert fetcher is not None
            iter(fetcher)
        self._first = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Warn if Lightning goes on without the start of an epoch."""
        if not self._has_started:
            rank_zero_warn(
                "EpochSeed: the checkpoint is from within an epoch; training goes on with other "
                "random numbers than the uninterrupted run. Resume from one of the end of an "
                "epoch, as ModelCheckpoint() writes them, to get the same weights."
            )
        self._has_started = True

    def _seed(self, trainer: Trainer, number: int) -> None:
        # Not seed_everything: it would put this seed on record for the processes of the run.
        seed = epoch_seed(self._base, number, trainer.global_rank)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)


class MemoryBankCheckpoint(Callback):
    """Saves the queue of lightly's memory banks (``NTXentLoss`` of MoCo) in checkpoints.

    lightly keeps it out of the ``state_dict``, so that a resumed run starts with random keys
    in its queue. Here it lies beside the ``state_dict``, under ``memory_banks``, which stays
    as it is. A checkpoint without it, of a run without this callback, leaves the queue as it
    is.

    Raises:
        ValueError: On resuming, if a queue has another size than in the checkpoint.
    """

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the banks and where their next keys go."""
        checkpoint["memory_banks"] = {
            name: (bank.bank, bank.bank_ptr) for name, bank in _banks(pl_module)
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take them back."""
        saved = checkpoint.get("memory_banks", {})
        for name, bank in _banks(pl_module):
            if name in saved:
                device, size = bank.bank.device, tuple(saved[name][0].shape)
                if size != bank.bank.shape:
                    raise ValueError(
                        f"memory bank {name} must have the size {size} that it has in the "
                        f"checkpoint, got {tuple(bank.bank.shape)}"
                    )
                bank.bank, bank.bank_ptr = (value.to(device) for value in saved[name])


def _banks(module: torch.nn.Module) -> list[tuple[str, MemoryBankModule]]:
    return [(name, m) for name, m in module.named_modules() if isinstance(m, MemoryBankModule)]
