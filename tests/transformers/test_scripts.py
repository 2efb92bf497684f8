"""transformers' own pretraining scripts, unchanged, by the launcher.

Set ``TRANSFORMERS_REPO`` to a checkout of its repository; the scripts are in no wheel.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="transformers is not installed (extra transformers)")
pytest.importorskip("datasets", reason="datasets, which the scripts read images with, is missing")
from transformers import ViTImageProcessor, ViTMAEForPreTraining

from mim_plugins.masking import DPPMasking

REPOSITORY = os.environ.get("TRANSFORMERS_REPO")
pytestmark = [
    pytest.mark.skipif(
        REPOSITORY is None, reason="TRANSFORMERS_REPO is not set to a checkout of transformers"
    ),
    pytest.mark.slow,
]
# The launcher as by ``python -m``, with a look at each forward pass.
WATCHED = """
import runpy, sys, torch
seen, states = [], []
MODELS = "ViTMAEForPreTraining", "ViTForMaskedImageModeling"

def before(module, args):
    if type(module).__name__ in MODELS:
        states.append(torch.get_rng_state())

def look(module, args, kwargs, output):
    if type(module).__name__ in MODELS:
        mask = output.mask if "mask" in output else kwargs["bool_masked_pos"]
        seen.append((module.training, kwargs["pixel_values"], mask.bool(), states[-1]))

torch.nn.modules.module.register_module_forward_pre_hook(before)
torch.nn.modules.module.register_module_forward_hook(look, with_kwargs=True)
file = sys.argv.pop(1)
runpy.run_module("mim_plugins.transformers", run_name="__main__", alter_sys=True)
torch.save(seen, file)
"""
ENCODER = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64"
DECODER = ",".join(f"decoder_{part}" for part in ENCODER.split(","))


def run(folder: Path, masking: str, script: str, *arguments: str) -> list:
    """Three steps and an evaluation; of each batch training or not, images, masks, seed."""
    (folder / "images" / "class").mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for index in range(16):
        pixels = numbers.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(folder / "images" / "class" / f"{index}.png")
    command = [
        sys.executable, "-c", WATCHED, str(folder / "seen.pt"), "--masking", masking,
        f"{REPOSITORY}/examples/pytorch/image-pretraining/{script}",
        "--dataset_name", "imagefolder", "--train_dir", f"{folder}/images/**",
        "--output_dir", str(folder / "out"), "--cache_dir", str(folder / "cache"),
        "--remove_unused_columns", "False", "--do_train", "--do_eval", "--max_steps", "3",
        "--per_device_train_batch_size", "4", "--use_cpu", "--report_to", "none", *arguments,
    ]  # fmt: skip
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "seen.pt", weights_only=True)


def test_run_mae(tmp_path: Path) -> None:
    seen = run(
        tmp_path, '{"type": "DPPMasking", "tau": 0.0}', "run_mae.py", "--label_names",
        "pixel_values", "--mask_ratio", "0.6", "--config_overrides", f"{ENCODER},{DECODER}",
    )  # fmt: skip
    assert [training for training, *_ in seen] == [True] * 3 + [False]
    for _, images, mask, state in seen:
        torch.set_rng_state(state)
        expected = DPPMasking(tau=0.0)(images, mask_ratio=0.6, patch_size=16).mask
        assert torch.equal(mask, expected)
    ViTMAEForPreTraining.from_pretrained(tmp_path / "out")


def test_run_mim(tmp_path: Path) -> None:
    ViTImageProcessor().save_pretrained(tmp_path / "processor")
    seen = run(
        tmp_path, '{"type": "DPPMasking", "tau": 0.0, "mask_unit": 32}', "run_mim.py",
        "--model_type", "vit", "--label_names", "bool_masked_pos", "--mask_ratio", "0.7",
        "--config_overrides", ENCODER, "--image_processor_name", str(tmp_path / "processor"),
    )  # fmt: skip
    assert [training for training, *_ in seen] == [True] * 3 + [False]
    for training, images, mask, state in seen:
        torch.set_rng_state(state)
        expected = DPPMasking(tau=0.0, mask_unit=32)(images, mask_ratio=0.7, patch_size=16).mask
        assert mask.sum() == expected.sum()
        assert torch.equal(mask, expected) == training  # evaluation is the script's
