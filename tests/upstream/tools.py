"""Runs mmpretrain's own tools, from the installed wheel, on configs cut down to CPU size."""

from __future__ import annotations

from pathlib import Path

import mmpretrain

from ..warm import run_script

TOOLS = Path(mmpretrain.__file__).parent / ".mim" / "tools"
CONFIGS = Path(__file__).parents[2] / "configs_mmpretrain"

IMPORT = "custom_imports = dict(imports=['mim_plugins.mmpretrain'], allow_failed_imports=False)\n"

TINY_VIT = """dict(
    _delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)"""

TINY_MAE = f"""
model = dict(
    backbone=dict(arch={TINY_VIT}, img_size=64, patch_size=8),
    neck=dict(
        patch_size=8, num_patches=64, embed_dim=32, decoder_embed_dim=32, decoder_depth=1,
        decoder_num_heads=2),
    head=dict(patch_size=8))
"""

TINY_CLASSIFIER = f"model = dict(backbone=dict(arch={TINY_VIT}, img_size=64, patch_size=8))\n"

RUNTIME = """
train_cfg = dict(max_epochs=1)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""

CROP = "dict(type='RandomResizedCrop', scale=64)"


def loader(folder: Path, split: str, images: int, *transforms: str) -> str:
    """A data loader of ``images`` photographs in batches of 8, without worker processes."""
    pipeline = ["dict(type='LoadImageFromFile')", *transforms, "dict(type='PackInputs')"]
    return f"""dict(
    batch_size=8, num_workers=0, persistent_workers=False, drop_last=False,
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root={str(folder)!r}, data_prefix={split!r},
        indices={images}, pipeline=[{", ".join(pipeline)}]))
"""


def run_tool(name: str, *arguments: str | Path, **environment: str) -> str:
    """Run ``tools/<name>.py`` and return what it printed; its failure is the test's."""
    env = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    code, output = run_script(TOOLS / f"{name}.py", *arguments, env=env)
    assert code == 0, output[-4000:]
    return output


def read_log(work_dir: Path) -> str:
    """mmengine's log files of a run, oldest first."""
    return "".join(path.read_text() for path in sorted(work_dir.glob("*/*.log")))
