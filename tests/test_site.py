"""The documentation: it builds without a warning, and a phone shows every page whole."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .browser import BROWSER, look_at

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((https://github\.com/mim-plugins/mim_plugins/(?:blob|tree)/main/([^)#]+))")
PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)]+)\)")


def test_links_of_the_readme_are_absolute_and_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    relative = re.findall(r"\]\((?!https?://|#)([^)]+)\)", text)
    assert not relative  # they would be dead on the package index
    targets = [found[2] for found in LINK.finditer(text)]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
    assert len(text.splitlines()) <= 120


def test_every_picture_of_the_docs_exists() -> None:
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("configs_mmpretrain/**/*.md")]
    missing = [
        f"{page.relative_to(ROOT)}: {picture}"
        for page in pages
        for picture in PICTURE.findall(page.read_text())
        if not (page.parent / picture).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["masks", "latents"])
def test_notebooks_run(name: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed").use("agg")
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    cells = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells if "print" in "".join(cell["source"]))
    namespace: dict[str, object] = {}
    for source in code:
        exec(source, namespace)


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed (extra docs)")
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_site_on_a_phone(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    pages = [
        f"/{path.relative_to(tmp_path)}"
        for path in sorted(tmp_path.rglob("index.html"))
        if "assets" not in path.parts
    ]
    found = look_at(tmp_path, pages)
    assert set(found) == set(pages)
    assert {page: seen["broken"] for page, seen in found.items() if seen["broken"]} == {}
    wide = {page: seen["width"] for page, seen in found.items() if seen["width"] > 400}
    assert wide == {}
    assert all(len(seen["text"]) > 200 for seen in found.values())
