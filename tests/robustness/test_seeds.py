"""The seeds of epochs, workers and their masks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from mim_plugins._seed import epoch_seed


def test_seeds_of_epochs_and_ranks_are_distinct() -> None:
    seeds = [epoch_seed(*each) for each in np.ndindex(3, 100, 16)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert epoch_seed(0, 1, 0) == epoch_seed(0, 1, 0)


class Masks(Dataset):
    """One image, 32 times: its masks differ by what is drawn alone."""

    def __init__(self) -> None:
        from mim_plugins.mmpretrain import DPPMaskGenerator

        self.generator = DPPMaskGenerator(64, 8, 8, mask_ratio=0.5, tau=0.5)
        self.image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = torch.from_numpy(self.generator({"img": self.image})["mask"])
        return {"inputs": torch.zeros(1), "mask": mask}


def epochs(folder: Path, seed: int = 0, workers: int = 2, hook: bool = False) -> list[torch.Tensor]:
    """The masks ``(32, 64)`` of each of two epochs of mmengine's own runner."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))
            self.seen: list[torch.Tensor] = []

        def forward(self, inputs: Any, mask: torch.Tensor, mode: str) -> dict[str, torch.Tensor]:
            self.seen.append(mask.flatten(1))
            return {"loss": self.weight.square()}

    model = Model()
    Runner(
        model,
        str(folder),
        train_dataloader={
            "dataset": Masks(),
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_size": 4,
            "num_workers": workers,
            "collate_fn": {"type": "default_collate"},
        },
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        custom_hooks=[{"type": "EpochSeedHook"}] * hook,
        randomness={"seed": seed},
        default_scope="mmpretrain",
        experiment_name=folder.name,
        log_level="WARNING",
    ).train()
    return list(torch.cat(model.seen).chunk(2))


def distinct(masks: torch.Tensor) -> int:
    return len(masks.unique(dim=0))


def test_workers_draw_masks_of_their_own(tmp_path: Path) -> None:
    """What the docstring of DPPMaskGenerator promises, under mmengine's own data loader."""
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    first = epochs(tmp_path / "first")
    assert distinct(first[0]) == 32, "no worker repeats another one's masks, nor its own"
    again = epochs(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], epochs(tmp_path / "other", seed=1)[0])
    # Stock mmengine seeds workers alike in every epoch; with the hook by the epoch.
    assert torch.equal(*first)
    hooked = epochs(tmp_path / "hooked", hook=True)
    assert distinct(torch.cat(hooked)) == 64


def test_the_hook_says_what_it_needs(photo_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    from ..mmpretrain.algorithms import MASKED, build_runner

    hook = {"custom_hooks": [{"type": "EpochSeedHook"}]}
    name = next(iter(MASKED))
    for number, (options, message) in enumerate(
        [
            ({"randomness": {"seed": None}}, "needs a seed in the config"),
            (
                {"train_cfg": {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 2}},
                "needs train_cfg of an EpochBasedTrainLoop, got IterBasedTrainLoop",
            ),
            (
                {"train_dataloader": {"num_workers": 1, "persistent_workers": True}},
                "persistent_workers must be False",
            ),
        ]
    ):
        runner = build_runner(name, photo_folder, tmp_path / str(number), **hook, **options)
        with pytest.raises(ValueError, match=message):
            runner.train()


def test_the_hook_warns_of_what_it_cannot_restore(photo_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    from ..mmpretrain.algorithms import MASKED, build_runner

    options = {"images": 6, "batch": 2, "randomness": {"seed": 0}}  # 3 iterations to an epoch
    options |= {"custom_hooks": [{"type": "EpochSeedHook"}], "train_cfg.max_epochs": 2}
    options |= {"optim_wrapper.accumulative_counts": 2}
    options |= {"default_hooks.checkpoint": {"type": "CheckpointHook", "interval": 2,
                                             "by_epoch": False}}  # fmt: skip
    name = next(iter(MASKED))
    build_runner(name, photo_folder, tmp_path / "whole", **options).train()
    log = next((tmp_path / "whole").glob("*/*.log")).read_text()
    assert log.count("accumulative_counts=2 does not divide the 3 iterations") == 1
    assert "is from within an epoch" not in log
    options |= {"load_from": str(tmp_path / "whole/iter_2.pth"), "resume": True}
    options |= {"optim_wrapper.accumulative_counts": 1}
    build_runner(name, photo_folder, tmp_path / "resumed", **options).train()
    log = next((tmp_path / "resumed").glob("*/*.log")).read_text()
    assert log.count("the checkpoint of iteration 2 is from within an epoch") == 1


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        while True:
            yield [torch.rand(3, 32, 32)]


# How checkpoints are saved, and what Trainer is given beside.
SAVED: dict[str, tuple[dict, dict]] = {
    "default": ({}, {}),
    "after validation": ({"save_on_train_epoch_end": False}, {}),
    "validation every second epoch": ({}, {"check_val_every_n_epoch": 2}),
    "by steps": ({"every_n_train_steps": 2}, {}),
    "within epochs": ({}, {"val_check_interval": 0.5}),
}


@pytest.mark.parametrize("saved", SAVED)
def test_lightning_resumes_from_every_end_of_an_epoch(saved: str, tmp_path: Path) -> None:
    """However the checkpoint came about; one from within an epoch warns."""
    pytest.importorskip("lightly", reason="lightly is not installed")
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    from mim_plugins.lightly import EpochSeed, wrap
    from mim_plugins.masking import DPPMasking

    from ..lightly.modules import MAE
    from .lightly_cases import Images

    class Validated(MAE):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            torch.rand(3)  # draws

    saving, training = SAVED[saved]

    def fit(folder: Path, checkpoint: Path | None = None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = wrap(Validated(), masking=DPPMasking(patch_size=4))
        images = torch.utils.data.Subset(Images(32), range(16))
        pl.Trainer(
            max_epochs=4, accelerator="cpu", devices=1, logger=False,
            callbacks=[EpochSeed(0), ModelCheckpoint(folder, "{step}", save_top_k=-1, **saving)],
            enable_progress_bar=False, enable_model_summary=False, **training,
        ).fit(
            model,
            torch.utils.data.DataLoader(images, 4, shuffle=True),
            torch.utils.data.DataLoader(images, 4),
            ckpt_path=checkpoint,
        )  # fmt: skip
        return list(model.state_dict().values())

    whole = fit(tmp_path / "whole")
    steps = {int(path.stem[5:]): path for path in (tmp_path / "whole").glob("step=*.ckpt")}
    assert {8, 16} <= set(steps)  # 4 steps to an epoch
    for step, path in steps.items():
        if step == 16:
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resumed = fit(tmp_path / "resumed", path)
        exact = not step % 4 and saved != "by steps"  # which saves before the epoch has ended
        said = any("checkpoint is from within an epoch" in str(each.message) for each in caught)
        assert said != exact, step
        if exact:
            assert all(map(torch.equal, resumed, whole)), step


def test_the_callback_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    import pytorch_lightning as pl

    from mim_plugins.lightly import EpochSeed

    from ..lightly.modules import MAE
    from .lightly_cases import Images

    def fit(callback: pl.Callback, **loader: Any) -> None:
        pl.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, callbacks=[callback],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        ).fit(MAE(), torch.utils.data.DataLoader(Images(32), 16, **loader))  # fmt: skip

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    with pytest.raises(ValueError, match="EpochSeed needs a seed"):
        fit(EpochSeed())
    with pytest.raises(ValueError, match="persistent_workers must be False"):
        fit(EpochSeed(0), num_workers=1, persistent_workers=True)
    endless = pl.Trainer(
        max_steps=1, accelerator="cpu", devices=1, logger=False, callbacks=[EpochSeed(0)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs epochs that end, got a data loader without length"):
        endless.fit(MAE(), torch.utils.data.DataLoader(Endless(), 4))
    assert EpochSeed(np.int64(3)).seed == 3
    with pytest.raises(TypeError, match="seed must be an int, got 'a'"):
        EpochSeed("a")
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        EpochSeed(-1)
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    fit(EpochSeed())
    assert os.environ["PL_GLOBAL_SEED"] == "3"
