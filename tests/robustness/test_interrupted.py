"""Killed in the middle of an epoch and resumed: the weights of the uninterrupted run."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from ..warm import run_script
from .cases import CASES
from .interrupt import EPOCHS, STEPS, UNSEEDED

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["mmpretrain", "lightly"])
def test_resumed_runs_end_with_the_same_weights(framework: str, tmp_path: Path) -> None:
    """Every row of the table, trained through, killed and resumed in children of one process."""
    names = [str(case) for case in CASES if case.framework == framework]
    if not names:
        pytest.skip(f"{framework} is not installed")
    code, output = run_script(
        "-m", "tests.robustness.interrupt", tmp_path, f"{framework}-",
        cwd=ROOT, env={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert code == 0, output[-4000:]
    ended = json.loads((tmp_path / "ended.json").read_text())
    assert list(ended) == [*names, names[0] + UNSEEDED]
    expected = {"through": 0, "killed": -signal.SIGKILL, "resumed": 0}
    assert all(each == expected for each in ended.values()), (ended, output[-4000:])
    differ = {name: differences(tmp_path, name) for name in names}
    assert not any(differ.values()), {name: keys for name, keys in differ.items() if keys}
    # Without the remedy stock does not, and the comparison notices.
    assert differences(tmp_path, names[0] + UNSEEDED)


def differences(folder: Path, name: str) -> list[str]:
    """Weights in which a resumed run differs from the one that went through."""
    results = [torch.load(folder / f"{name}-{run}.pt") for run in ("through", "resumed")]
    assert [steps for steps, _ in results] == [EPOCHS * STEPS, (EPOCHS - 1) * STEPS]
    through, resumed = (weights for _, weights in results)
    assert list(through) == list(resumed)
    return [key for key, value in through.items() if not torch.equal(resumed[key], value)]


KILL = """
import os
import signal

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == 3:  # of two iterations per epoch
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_stock_tool_resumes_exactly(photo_folder: Path, tmp_path: Path) -> None:
    """MixMask with MoCo: queue, momentum encoder, random views from two workers."""
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    from mmengine.runner import CheckpointLoader

    from ..upstream.test_mmpretrain_mixmask import config
    from ..upstream.tools import TOOLS, read_log, run_tool

    path = tmp_path / "config.py"
    path.write_text(
        config("MoCo", photo_folder, "model.update(type='MixMaskMoCo', mixmask=dict())\n")
        + "train_dataloader.update(num_workers=2)\n"
        + "train_cfg = dict(max_epochs=2)\n"
        + "custom_hooks = [dict(type='EpochSeedHook')]\n"
    )
    run_tool("train", path, "--work-dir", tmp_path / "through")

    (tmp_path / "kill.py").write_text(KILL)
    killed = tmp_path / "killed.py"
    killed.write_text(
        "_base_ = './config.py'\n"
        "custom_imports = dict(imports=['mim_plugins.mmpretrain', 'kill'])\n"
        "custom_hooks = [dict(type='EpochSeedHook'), dict(type='KillHook')]\n"
    )
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    code, output = run_script(
        TOOLS / "train.py", killed, "--work-dir", tmp_path / "halves", env=env
    )
    assert code == -signal.SIGKILL, output[-4000:]
    assert not (tmp_path / "halves/epoch_2.pth").exists()
    run_tool("train", path, "--work-dir", tmp_path / "halves", "--resume")
    assert re.search("resumed epoch: 1, iter: 2", read_log(tmp_path / "halves"))

    through, resumed = (
        CheckpointLoader.load_checkpoint(str(tmp_path / run / "epoch_2.pth"), "cpu")["state_dict"]
        for run in ("through", "halves")
    )
    assert list(through) == list(resumed)
    for key, value in through.items():
        assert torch.equal(resumed[key], value), key
