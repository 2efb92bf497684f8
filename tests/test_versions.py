"""What is too old is named at import, with the version that is needed."""

import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("mim_plugins.masking", "torch", ""),
        ("mim_plugins.lightly", "timm", r"\[lightly\]"),
        ("mim_plugins.mmpretrain", "mmpretrain", r"\[mmpretrain\]"),
    ],
)
def test_one_sentence_at_import(module: str, package: str, extra: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    code = f"import {package}; {package}.__version__ = '0.1.0'; import {module}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    expected = (
        rf"ImportError: mim_plugins needs {package}>=[\d.]+, found 0\.1\.0: "
        rf"pip install --upgrade 'mim_plugins{extra}'"
    )
    assert result.returncode == 1
    assert re.fullmatch(expected, last), last
