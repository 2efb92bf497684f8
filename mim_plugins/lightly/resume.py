"""Exact resumption after an interruption."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightly.models.modules.memory_bank import MemoryBankModule
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything

from .._seed import check_loader, epoch_seed


class EpochSeed(Callback):
    """Seeds every epoch anew, so that ``ckpt_path`` continues as if nothing had happened.

    Lightning saves no random states: a resumed run draws other masks and augmentations than
    the uninterrupted one. With this callback they depend on the seed, the epoch and the rank
    alone, so that nothing needs to be saved. Resume from a checkpoint of the end of an
    epoch, as ``ModelCheckpoint`` writes them by default.

    Python, numpy and torch are seeded before the epoch's data-loader iterator is made. The
    one of the first epoch Lightning makes earlier, before any callback knows the epoch to be
    resumed; it is made again.

    Args:
        seed: Default: what ``seed_everything(seed)`` was given.

    Raises:
        TypeError: If ``seed`` is no int.
        ValueError: If ``seed`` is negative; when training starts, if there is no seed, or a
            data loader has ``persistent_workers=True``, whose random states nobody can
            restore.

    Example:
        >>> Trainer(callbacks=[EpochSeed(0)]).fit(
        ...     model, loader, ckpt_path="last"
        ... )  # doctest: +SKIP
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an int or None, got {seed!r}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.seed = seed
        self._base = 0
        self._has_iterator = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check seed and data loaders."""
        found = self.seed if self.seed is not None else os.environ.get("PL_GLOBAL_SEED")
        if found is None:
            raise ValueError(
                "EpochSeed needs a seed: EpochSeed(0), or seed_everything(0) before, got None"
            )
        self._base = int(found)
        for loader in trainer.fit_loop._data_fetcher.combined_loader.flattened:
            check_loader(loader)
        # Lightning makes later iterators after on_train_epoch_start, but keeps this one.
        self._has_iterator = trainer.current_epoch == 0 or trainer.ckpt_path is not None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed this process; its workers get theirs from it."""
        # What a run was started with stays on record for the processes that it starts.
        names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
        known = {name: os.environ[name] for name in names if name in os.environ}
        seed = epoch_seed(self._base, trainer.current_epoch, trainer.global_rank)
        seed_everything(seed, verbose=False)
        for name in names:
            del os.environ[name]
        os.environ.update(known)
        if self._has_iterator:
            self._has_iterator = False
            iter(trainer.fit_loop._data_fetcher)


class MemoryBankCheckpoint(Callback):
    """Saves the queue of lightly's memory banks (``NTXentLoss`` of MoCo) in checkpoints.

    lightly keeps it out of the ``state_dict``, so that a resumed run starts with random keys
    in its queue. Here it lies beside the ``state_dict``, under ``memory_banks``, which stays
    as it is. A checkpoint without it, of a run without this callback, leaves the queue as it
    is.
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
                device = bank.bank.device
                bank.bank, bank.bank_ptr = (value.to(device) for value in saved[name])


def _banks(module: torch.nn.Module) -> list[tuple[str, MemoryBankModule]]:
    return [(name, m) for name, m in module.named_modules() if isinstance(m, MemoryBankModule)]
