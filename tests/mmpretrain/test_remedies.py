"""Every remedy against the fault it mends, which is first shown to be there."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.logging import HistoryBuffer
from mmengine.registry import FUNCTIONS
from mmengine.runner.checkpoint import load_from_local
from PIL import Image
from torchvision.transforms import functional as F

from mim_plugins.apps.photos import photo_crops
from mim_plugins.mmpretrain import remedies

STATES = {status.name: status.state for status in remedies.status()}


def run(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_states_are_known() -> None:
    assert list(STATES) == [remedy.name for remedy in remedies.REMEDIES]
    assert set(STATES.values()) <= {"active", "not needed", "switched off", "broken"}


FAULTS = "from mim_plugins.mmpretrain import remedies; " + (
    "print([s.name for s in remedies.status() if s.state == 'switched off']); "
    "print([r.name for r in remedies.REMEDIES if r.is_broken()])"
)


def test_faults_are_there_without_and_gone_with_the_remedies() -> None:
    active = [name for name, state in STATES.items() if state == "active"]
    *_, off, broken = run(FAULTS, **{remedies.SWITCH: "all"}).strip().splitlines()
    assert off == broken == str(active)
    *_, off, broken = run(FAULTS, **{remedies.SWITCH: ""}).strip().splitlines()
    assert off == "[]"
    # AmpOptimWrapper itself still refuses; its name in the registry is what changes.
    assert broken in ("[]", "['amp_on_cpu']")


def test_one_remedy_can_be_switched_off() -> None:
    if STATES["adjust_hue"] != "active":
        pytest.skip(f"adjust_hue is {STATES['adjust_hue']} with the installed mmcv and numpy")
    *_, off, broken = run(FAULTS, **{remedies.SWITCH: "adjust_hue"}).strip().splitlines()
    assert off == "['adjust_hue']"
    assert "adjust_hue" in broken


def test_unknown_remedy_is_refused() -> None:
    code = "import mim_plugins.mmpretrain"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, remedies.SWITCH: "hue"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert f"{remedies.SWITCH} may name 'all' or" in result.stderr
    assert "got hue" in result.stderr


def test_it_is_said_once() -> None:
    output = run("import mim_plugins.mmpretrain, mim_plugins.mmpretrain.remedies as r; r.apply()")
    assert output.count("mim_plugins mends upstream") == 1


def test_collate_accepts_the_scope_of_a_base_config(tmp_path: Path) -> None:
    collate = FUNCTIONS.get("default_collate")
    batch = [{"inputs": torch.ones(2)}, {"inputs": torch.zeros(2)}]
    for arguments in ({}, {"_scope_": "mmpretrain"}):
        expected = default_collate(batch)["inputs"]
        assert torch.equal(collate(batch, **arguments)["inputs"], expected)
    pickle.loads(pickle.dumps(collate))  # spawned workers
    config = tmp_path / "config.py"
    config.write_text("_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'")
    assert Config.fromfile(config).train_dataloader.collate_fn._scope_ == "mmpretrain"


def test_history_survives_loading(tmp_path: Path) -> None:
    path = tmp_path / "history.pth"
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save({"history": history, "scalar": np.float64(2.5), "lr": np.int64(3)}, path)
    loaded = load_from_local(path, "cpu")
    assert loaded["history"].statistics("mean") == 2.0
    assert loaded["history"].statistics("max") == 3.0
    assert loaded["scalar"] == 2.5
    history.update(5.0)
    assert history.statistics("current") == 5.0


def test_stock_history_loads_and_safe_loading_stays_safe(tmp_path: Path) -> None:
    """A checkpoint written without the plugin loads; any other getattr is refused."""
    if STATES["safe_load"] != "active":
        pytest.skip(f"safe_load is {STATES['safe_load']}: this mmengine has its own way")
    code = """
import io, sys, torch
from mmengine.logging import HistoryBuffer
torch.save({"history": HistoryBuffer([1.0, 3.0], [1, 1])}, sys.argv[1])
"""
    path = tmp_path / "stock.pth"
    subprocess.run([sys.executable, "-c", code, path], check=True)
    assert torch.load(path, weights_only=True)["history"].statistics("mean") == 2.0

    class Evil:
        def __reduce__(self) -> tuple:
            return getattr, (HistoryBuffer, "register_statistics")

    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    buffer.seek(0)
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("hue", np.linspace(-0.5, 0.5, 21))
def test_hue_agrees_with_torchvision(hue: float) -> None:
    rgb = photo_crops("flower", 1, 32, True, np.random.default_rng(0))[0]
    bgr = np.asarray(rgb)[..., ::-1]
    expected = np.asarray(F.adjust_hue(rgb, float(hue)))
    actual = mmcv.adjust_hue(np.ascontiguousarray(bgr), float(hue), backend="pillow")[..., ::-1]
    np.testing.assert_array_equal(actual, expected)
    # OpenCV converts colours a little differently, so its hue is compared closely, not exactly.
    opencv = mmcv.adjust_hue(np.ascontiguousarray(bgr), float(hue), backend="cv2")[..., ::-1]
    assert np.abs(opencv.astype(int) - expected.astype(int)).mean() < 6


def test_color_jitter_of_the_stock_pipelines_never_fails() -> None:
    from mmpretrain.datasets.transforms import ColorJitter

    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    image = np.asarray(Image.new("RGB", (8, 8), (200, 30, 90)))
    for _ in range(100):
        assert jitter({"img": image})["img"].shape == (8, 8, 3)


def test_amp_falls_back_to_float32() -> None:
    if STATES["amp_on_cpu"] != "active":
        pytest.skip("there is an accelerator")
    from mmengine.optim import OptimWrapper
    from mmengine.registry import OPTIM_WRAPPERS

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(
        {
            "type": "AmpOptimWrapper",
            "loss_scale": "dynamic",
            "optimizer": optimizer,
            "accumulative_counts": 2,
        }
    )
    assert type(wrapper) is OptimWrapper
    assert wrapper._accumulative_counts == 2
