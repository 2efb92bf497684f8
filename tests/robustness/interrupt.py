"""Trains every plugin through, kills it in the second epoch, and resumes it, in children.

    python -m tests.robustness.interrupt FOLDER [START OF NAME ...]

Each of the three runs is a fork of this process with nothing done yet, in half the time of
one of its own. ``FOLDER/<case>-{through,resumed}.pt`` holds the steps that the process took and
the final weights, ``ended.json`` how the children ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from mim_plugins.masking import DPPMasking

from ..warm import quicken
from .case import Case
from .cases import CASES
from .training import BATCH

EPOCHS, STEPS = 3, 2
KILLED_AFTER = 3  # steps: in the middle of the second epoch
UNSEEDED = "-unseeded"  # a stock run without the remedy


class Augmented(Dataset):
    """Images changed with the numbers of all three generators."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = Subset(dataset, range(STEPS * BATCH))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if isinstance(item, dict):
            return {**item, "inputs": _augment(item["inputs"])}
        return _augment(item[0]), *item[1:]


def _augment(views: Any) -> Any:
    if isinstance(views, list):
        return [_augment(view) for view in views]
    factor = 0.5 + random.random() + np.random.rand()  # noqa: NPY002
    return (factor * views + 0.1 * torch.rand_like(views)).float()


def train_mmpretrain(
    case: Case, folder: Path, kill: bool, resume: bool, seeded: bool
) -> tuple[int, dict[str, Tensor]]:
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    steps = []

    class Kill(Hook):
        def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
            steps.append(runner.iter + 1)
            if kill and steps[-1] == KILLED_AFTER:
                os.kill(os.getpid(), signal.SIGKILL)

    setup = (case.on if seeded else case.stock)()
    runner = Runner(
        setup.model,
        str(folder),
        train_dataloader={
            "dataset": Augmented(setup.dataset),
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_size": BATCH,
            "num_workers": case.workers,
            "collate_fn": {"type": "default_collate"},
        },
        train_cfg={"by_epoch": True, "max_epochs": EPOCHS},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-3}},
        param_scheduler={"type": "CosineAnnealingLR", "T_max": EPOCHS, "by_epoch": True},
        custom_hooks=[{"type": "EpochSeedHook"}] * seeded + [Kill()],
        resume=resume,
        randomness={"seed": 0},
        default_scope="mmpretrain",
        experiment_name=f"{folder.name}-{resume}",
        log_level="WARNING",
    )
    runner.train()
    return len(steps), setup.model.state_dict()


def train_lightly(
    case: Case, folder: Path, kill: bool, resume: bool, seeded: bool
) -> tuple[int, dict[str, Tensor]]:
    import pytorch_lightning as pl
    from lightly.models.modules.memory_bank import MemoryBankModule

    from mim_plugins.lightly import EpochSeed, MemoryBankCheckpoint

    steps = []

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            steps.append(trainer.global_step)
            if kill and steps[-1] == KILLED_AFTER:
                os.kill(os.getpid(), signal.SIGKILL)

    setup = (case.on if seeded else case.stock)()
    pl.seed_everything(0, verbose=False)
    callbacks = [EpochSeed(), MemoryBankCheckpoint()] * seeded + [Kill()]
    save = pl.callbacks.ModelCheckpoint(folder, "epoch", enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, logger=False,
        callbacks=[*callbacks, save], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(Augmented(setup.dataset), BATCH, shuffle=True, num_workers=case.workers)
    checkpoint = {"ckpt_path": folder / "epoch.ckpt"} if resume else {}
    trainer.fit(setup.model, loader, **checkpoint)
    state = dict([*setup.model.state_dict().items(), *setup.model.named_buffers()])
    for name, module in setup.model.named_modules():
        if isinstance(module, MemoryBankModule) and not module.bank.numel():
            del state[f"{name}.bank_ptr"]  # of an empty bank: nobody sets it
    return len(steps), state


TRAIN = {"mmpretrain": train_mmpretrain, "lightly": train_lightly}


def in_child(function: Any) -> int:
    """Run a function in a fork of this process; how it ended, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        function()
    except BaseException:  # a child must not return into its parent's code
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def interrupt(case: Case, folder: Path, seeded: bool = True) -> dict[str, int]:
    """Exit codes of the three runs of a plugin."""
    name = str(case) + ("" if seeded else UNSEEDED)

    def run(work_dir: str, kill: bool = False, resume: bool = False, save: str = "") -> Any:
        def child() -> None:
            result = TRAIN[case.framework](case, folder / work_dir, kill, resume, seeded)
            torch.save(result, folder / f"{name}-{save}.pt")

        return in_child(child)

    return {
        "through": run(f"{name}-whole", save="through"),
        "killed": run(f"{name}-halves", kill=True),
        "resumed": run(f"{name}-halves", resume=True, save="resumed"),
    }


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    DPPMasking(patch_size=8)(torch.rand(2, 3, 32, 32))  # loads compiled code, for all children
    quicken()
    ended = {}
    cases = [case for case in CASES if str(case).startswith(tuple(names or [""]))]
    for case in cases:
        ended[str(case)] = interrupt(case, folder)
    if cases:
        ended[str(cases[0]) + UNSEEDED] = interrupt(cases[0], folder, seeded=False)
    (folder / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main()
