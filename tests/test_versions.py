"""What is too old is named at import, with the version that is needed."""

import re

import pytest

from .warm import run_script


@pytest.mark.parametrize(
    ("code", "package", "extra"),
    [
        ("import mim_plugins.masking", "torch", ""),
        ("import mim_plugins.lightly", "timm", r"\[lightly\]"),
        ("import mim_plugins.lightly", "pytorch_lightning", r"\[lightly\]"),
        ("import mim_plugins.mmpretrain", "mmpretrain", r"\[mmpretrain\]"),
        (
            "from mim_plugins.analysis import LatentHierarchy; LatentHierarchy.quadtree((2, 2))",
            "networkx",
            r"\[analysis\]",
        ),
    ],
)
def test_one_sentence_at_import(code: str, package: str, extra: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    code = f"import {package}; {package}.__version__ = '0.1.0'; {code}"
    returned, output = run_script("-c", code)
    last = output.strip().splitlines()[-1]
    expected = (
        rf"ImportError: mim_plugins needs {package.replace('_', '-')}>=[\d.]+, found 0\.1\.0: "
        rf"pip install --upgrade 'mim_plugins{extra}'"
    )
    assert returned == 1
    assert re.fullmatch(expected, last), last
