"""``python -m mim_plugins`` as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from mim_plugins.__main__ import main

from .warm import run_script

WITHOUT = """
import runpy, sys
for name in {absent!r}:
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]
    sys.modules[name] = None
sys.argv = ["mim_plugins"]
runpy.run_module("mim_plugins", run_name="__main__")
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_lists_what_is_there() -> None:
    pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
    pytest.importorskip("lightly", reason="lightly is not installed")
    code, output = run_script("-m", "mim_plugins")
    assert code == 0, output
    for text in (
        "mmpretrain                   usable",
        "lightly                      usable",
        "MODELS: MaskedMAEViT",
        "TRANSFORMS: DPPMaskGenerator",
        "TASK_UTILS: DPPMasking",
        "dpp_token_mask",
        "  UnMix  ",
        "safe_load",
    ):
        assert text in output
    listed = [line for line in output.splitlines() if line.startswith("  MODELS: ")]
    assert all(len(line.split()) > 3 for line in listed), "every component has a description"


def test_one_framework_is_enough() -> None:
    pytest.importorskip("lightly", reason="lightly is not installed")
    code, output = run_script("-c", WITHOUT.format(absent=["mmpretrain"]))
    assert code == 0
    assert "pip install 'mim_plugins[mmpretrain]'" in output
    assert "lightly                      usable" in output


def test_none_is_an_error() -> None:
    code, output = run_script("-c", WITHOUT.format(absent=["mmpretrain", "lightly"]))
    assert code == 1
    assert "pip install 'mim_plugins[mmpretrain]'" in output
    assert "pip install 'mim_plugins[lightly]'" in output
    assert "DPPMasking" in output


def test_configs_are_found() -> None:
    result = run("-m", "mim_plugins", "--configs")
    assert result.returncode == 0
    assert list(Path(result.stdout.strip()).glob("dppmask/mae-dpp_*.py"))


def test_commands_are_named() -> None:
    result = run("-m", "mim_plugins", "--nonsense")
    assert result.returncode == 2
    assert "{demo,report,show,variant-labels,self-test} [-h] ..." in result.stderr


def test_commands_run_and_say_what_they_need(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for name, needs in (
        ("demo", None),
        ("report", "sklearn"),
        ("show", None),
        ("variant-labels", None),
    ):
        if needs:
            pytest.importorskip(needs)
        pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
        with pytest.raises(SystemExit) as error:
            main([name, "--help"])
        assert error.value.code == 0
        assert f"usage: python -m mim_plugins {name}" in capsys.readouterr().out
    (tmp_path / "x.pth").touch()
    command = str(["x", "show", str(tmp_path / "x.pth"), str(tmp_path / "x.pth")])
    code = WITHOUT.format(absent=["mmpretrain"]).replace('["mim_plugins"]', command)
    returned, output = run_script("-c", code)
    assert returned == 2
    assert "x.pth is a checkpoint of mmpretrain" in output
    assert "pip install 'mim_plugins[mmpretrain]'" in output
    assert "Traceback" not in output


CORE_ONLY = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        third_party = {"numpy", "mmengine", "mmcv", "mmpretrain", "lightly", "timm", "numba",
                       "pytorch_lightning", "triton", "sklearn", "skimage", "matplotlib",
                       "networkx", "piq", "PIL", "tqdm"}
        if name.split(".")[0] in third_party:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""


def test_importing_the_package_needs_torch_alone() -> None:
    code = """
import torch
import mim_plugins.masking, mim_plugins.regularizers, mim_plugins.analysis
mask = mim_plugins.masking.DPPMasking(patch_size=4)(torch.rand(2, 3, 32, 32))
assert mask.ids_keep.shape == (2, 16)
"""
    result = run("-c", CORE_ONLY + code)
    assert result.returncode == 0, result.stderr


def test_photographs_and_demo_name_the_extras_they_need(tmp_path: Path) -> None:
    code = f"""
from mim_plugins.apps.photos import load_photo, write_photo_folder
for call in (lambda: load_photo("coffee"), lambda: write_photo_folder({str(tmp_path)!r})):
    try:
        call()
    except ImportError as error:
        assert "pip install 'mim_plugins[analysis]'" in str(error), error
    else:
        raise AssertionError("no error")
"""
    result = run("-c", CORE_ONLY + code)
    assert result.returncode == 0, result.stderr
    code = WITHOUT.format(absent=["mmpretrain", "tqdm"])
    returned, output = run_script("-c", code.replace('["mim_plugins"]', '["x", "demo"]'))
    assert returned == 2
    assert "needs mmpretrain, tqdm: pip install 'mim_plugins[mmpretrain,anal" in output
