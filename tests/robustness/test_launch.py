"""mmpretrain's own tools/train.py, launched on two processes as tools/dist_train.sh does it."""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

import mim_plugins.mmpretrain  # noqa: F401  (checkpoints load)

from ..upstream.tools import CONFIGS, CROP, RUNTIME, TINY_MAE, TOOLS, loader, read_log
from ..warm import run_script

# mmengine takes a GPU for granted, which this machine need not have.
GLOO = "import torch.distributed as dist\ndist.init_process_group('gloo')\n"

SMALL = """
custom_imports = dict(imports=['mim_plugins.mmpretrain', 'gloo'], allow_failed_imports=False)
train_dataloader = {loader}
randomness = dict(seed=0)
custom_hooks = [
    dict(type='EffectiveRankHook', interval=1), dict(type='OnlineProbeHook', num_classes=15)]
"""

ON_CPU = "model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)\n"


@pytest.mark.slow
def test_a_plugin_config_with_hooks(photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "gloo.py").write_text(GLOO)
    base = CONFIGS / "dppmask" / "mae-dpp_vit-large-p16_8xb512-amp-coslr-300e_in1k.py"
    small = SMALL.format(loader=loader(photo_folder, "train", 32, CROP))
    config = tmp_path / "config.py"
    config.write_text(f"_base_ = {str(base)!r}\n{small}{TINY_MAE}{RUNTIME}{ON_CPU}")
    code, output = run_script(
        *("-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node=2", TOOLS / "train.py", config),
        *("--launcher", "pytorch", "--work-dir", tmp_path / "work"),
        env={
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert code == 0, output[-4000:]
    log = read_log(tmp_path / "work")
    assert len(re.findall(r" loss: [\d.]+", log)) == 2  # 32 images on two processes of 8
    assert len(re.findall("analysis/effective_rank [\\d.]+", log)) == 2  # start and end, one rank
    weights = CheckpointLoader.load_checkpoint(str(tmp_path / "work" / "epoch_1.pth"), "cpu")[
        "state_dict"
    ]
    assert all(value.isfinite().all() for value in weights.values())


def test_config_of_sharded_training() -> None:
    """Only the way of training differs from the config that they stand beside."""
    folder = CONFIGS / "dppmask"
    base, config = (
        Config.fromfile(folder / f"mae-dpp_vit-large-p16_8xb512-{name}-coslr-300e_in1k.py")
        for name in ("amp", "fsdp")
    )
    assert config.runner_type == "FlexibleRunner"
    for key in base:
        assert config[key] == base[key], key
