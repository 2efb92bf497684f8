"""The built distributions, used outside the source tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mim_plugins

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_built_from_the_sdist_works_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("build", reason="build is not installed (extra dev)")

    def run(*arguments: str | Path, **environment: str) -> str:
        result = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == 0, result.stdout[-3000:]
        return result.stdout

    run("-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert list((tmp_path / "dist").glob("*.tar.gz"))
    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)

    configs = Path(run("-m", "mim_plugins", "--configs", PYTHONPATH=str(site)).strip())
    assert configs.is_relative_to(site)
    shipped = {path.relative_to(configs) for path in configs.rglob("*") if path.suffix != ".pyc"}
    sources = {
        path.relative_to(ROOT / "configs_mmpretrain")
        for path in (ROOT / "configs_mmpretrain").rglob("*")
        if "__pycache__" not in path.parts
    }
    assert sources <= shipped
    assert (site / "mim_plugins" / "py.typed").exists()
    index = (site / "mim_plugins" / "model-index.yml").read_text()
    assert index == (ROOT / "model-index.yml").read_text()
    assert (site / "mim_plugins" / ".mim" / "tools" / "train.py").exists()
    code = "import mim_plugins.masking as m; print(m.__file__)"
    assert run("-c", code, PYTHONPATH=str(site)).startswith(str(site))


def test_one_version_everywhere() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    logged = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited
    assert logged
    assert cited[1] == logged[1] == mim_plugins.__version__


def test_the_workflow_runs_the_pythons_that_are_promised() -> None:
    settings = (ROOT / "setup.cfg").read_text()
    promised = re.findall(r"Programming Language :: Python :: (3\.\d+)", settings)
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    (run,) = re.findall(r"^ +python: \[(.*)\]$", workflow, re.MULTILINE)
    assert re.findall(r"[\d.]+", run) == promised
    assert f"python_requires = >={promised[0]}\n" in settings
