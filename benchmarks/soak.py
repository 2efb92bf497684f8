"""Does memory grow, do files stay open? Thousands of steps of every plugin at small size.

    python benchmarks/soak.py                                  # 2,000 steps of each
    python benchmarks/soak.py --steps 500 --only 'mmpretrain-mae dpp' lightly-umae

The rows are those of ``tests/robustness/cases.py``, so that a plugin with a row there is here
too, and one row per framework with all hooks or callbacks. Each runs in a process of its own,
on the CPU. The resident size and the number of open file handles are sampled 100 times. The
first quarter is warm-up; growth is the slope of Theil and Sen, the median of all slopes between
two samples, which single jumps of the allocator do not move. Exit code 1 if a row grows by more
than ``--tolerance`` MiB per 1,000 steps, has more handles at its end than after the warm-up, or
fails.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from common import machine  # noqa: E402

from tests.robustness.cases import CASES  # noqa: E402
from tests.robustness.training import BATCH, TRAIN  # noqa: E402

SAMPLES = 100
MEBI = 2**20
MONITORS = ["rankme", "alpha_req"]


class Sampled(Dataset):
    """A data set that samples its process every so many steps."""

    def __init__(self, dataset: Any, steps: int) -> None:
        self.dataset = dataset
        self.metainfo = {"classes": ("a", "b", "c")}
        self.every = max(steps // SAMPLES, 1) * BATCH
        self.process = psutil.Process()
        self.items = 0
        self.seen: list[tuple[float, float, int]] = []  # steps, MiB, handles

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if self.items % self.every == 0:
            self.seen.append(
                (
                    self.items / BATCH,
                    self.process.memory_info().rss / MEBI,
                    self.process.num_fds(),
                )
            )
        self.items += 1
        return self.dataset[index]


def train_case(name: str, steps: int) -> Sampled:
    """A row of the table of plugins, switched on."""
    (case,) = (case for case in CASES if str(case) == name)
    setup = case.on()
    setup.dataset = Sampled(setup.dataset, steps)
    if hasattr(setup.model, "seen"):  # the tests' modules remember all their masks
        setup.model.seen = deque(maxlen=1)
    TRAIN[case.framework](setup, steps)
    return setup.dataset


def train_with_hooks(name: str, steps: int) -> Sampled:
    """MAE under mmengine's Runner with every hook acting 20 times."""
    from mmengine.dataset import default_collate
    from mmengine.hooks import Hook
    from mmengine.runner import Runner
    from mmpretrain.registry import HOOKS

    from tests.mmpretrain import models
    from tests.robustness.mmpretrain_cases import Images

    dataset = Sampled(Images(64, classes=3), steps)
    interval = {"by_epoch": False, "interval": max(steps // 20, 1)}
    own = {
        "EpochSeedHook": None,  # which acts between epochs
        "FeatureMonitorHook": {"monitors": MONITORS, **interval},
        "OnlineProbeHook": {},
    }
    names = [n for n, c in HOOKS.module_dict.items() if c.__module__.startswith("mim_plugins")]
    arguments = {name: own.get(name, interval) for name in names}
    hooks: list[Hook | dict] = [
        {"type": name, **given} for name, given in arguments.items() if given is not None
    ]
    with tempfile.TemporaryDirectory() as folder:
        Runner(
            models.build("MaskedMAEViT", masking={"type": "DPPMasking"}),
            work_dir=folder,
            train_dataloader=DataLoader(dataset, BATCH, collate_fn=default_collate),
            optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-3}},
            train_cfg={"by_epoch": False, "max_iters": steps},
            custom_hooks=hooks,
            default_hooks={"checkpoint": None},
            default_scope="mmpretrain",
            log_level="ERROR",
        ).train()
    return dataset


def train_with_callbacks(name: str, steps: int) -> Sampled:
    """MAE under Lightning's Trainer with every callback acting 20 times."""
    import pytorch_lightning as pl

    from mim_plugins.lightly import (
        EffectiveRank,
        FeatureMonitor,
        HierarchicalMaskingAnalyzer,
        MaskVisualization,
        OnlineProbe,
        wrap,
    )
    from mim_plugins.masking import DPPMasking
    from tests.lightly.modules import MAE

    class Photos(Dataset):
        def __init__(self) -> None:
            self.images = torch.rand(32, 3, 32, 32)

        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> Any:
            return [self.images[index]], index % 3

    dataset = Sampled(Photos(), steps)
    epochs = max(steps * BATCH // 32, 1)
    every = max(epochs // 20, 1)
    callbacks = [
        EffectiveRank(every_n_epochs=every),
        FeatureMonitor(MONITORS, every_n_epochs=every),
        HierarchicalMaskingAnalyzer(every_n_epochs=every),
        MaskVisualization(every_n_epochs=every),
        OnlineProbe(3, every_n_epochs=every),
    ]
    model = wrap(MAE(), masking=DPPMasking(patch_size=4))
    model.seen = deque(maxlen=1)
    with tempfile.TemporaryDirectory() as folder:
        pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, callbacks=callbacks,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder,
        ).fit(model, DataLoader(dataset, BATCH))  # fmt: skip
    return dataset


ROWS: dict[str, Callable[[str, int], Sampled]] = {
    **{str(case): train_case for case in CASES},
    "mmpretrain-all hooks": train_with_hooks,
    "lightly-all callbacks": train_with_callbacks,
}


def growth(samples: list[tuple[float, float, int]]) -> float:
    """MiB per 1,000 steps, the median of the slopes between all pairs of samples."""
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(samples, 2)]
    return 1000 * statistics.median(slopes)


def run(name: str, steps: int, results: Any) -> None:
    """Train one row in a process of its own and put what was seen."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    start = time.process_time()
    dataset = ROWS[name](name, steps)
    seen = dataset.seen[len(dataset.seen) // 4 :]
    results.put((seen, time.process_time() - start))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--tolerance", type=float, default=1.0, help="MiB per 1,000 steps")
    args = parser.parse_args()
    context = multiprocessing.get_context("fork")  # what is imported is imported once
    print(f"{args.steps} steps, batch {BATCH}; {machine()}\n")
    print("| plugin | MiB after warm-up | growth, MiB per 1,000 steps | handles | more | CPU s |")
    print("|---|---|---|---|---|---|", flush=True)
    grown, seconds = [], 0.0
    for name in args.only:
        results = context.SimpleQueue()
        process = context.Process(target=run, args=(name, args.steps, results))
        process.start()
        process.join()
        if process.exitcode:
            grown.append(name)
            print(f"| {name} | failed with exit code {process.exitcode} | | | | |", flush=True)
            continue
        seen, taken = results.get()
        slope, more = growth(seen), seen[-1][2] - seen[0][2]
        seconds += taken
        if slope > args.tolerance or more > 0:
            grown.append(name)
        cells = (
            f"{seen[0][1]:.0f}",
            f"{slope:+.2f}",
            str(seen[0][2]),
            f"{more:+d}",
            f"{taken:.0f}",
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{seconds / 60:.1f} minutes of processor time")
    if grown:
        print(f"grows, or failed: {', '.join(grown)}")
    return int(bool(grown))


if __name__ == "__main__":
    raise SystemExit(main())
