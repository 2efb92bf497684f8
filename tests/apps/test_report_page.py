"""The report's page: what a name contains is text, and a phone shows it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")

from PIL import Image

from mim_plugins.apps.checkpoints import Run
from mim_plugins.apps.report import page

from ..browser import BROWSER, look_at

HOSTILE = "<script>document.title='owned'</script><img src=x>&amp;\"'|"


def write(folder: Path) -> str:
    found = {HOSTILE: SimpleNamespace(figures={"mask_ratio": 0.75, "mse": 0.5})}
    run = Run(name=HOSTILE, config=folder / HOSTILE.replace("/", "_"), checkpoint=folder / "e.pth")
    Image.new("RGB", (1000, 50)).save(folder / "scores.png")
    text = page("A report", "Of <b> & </b>.", found, {"scores": HOSTILE}, [run])
    (folder / "report.html").write_text(text, encoding="utf-8")
    return text


def test_names_are_text(tmp_path: Path) -> None:
    text = write(tmp_path)
    assert "<script" not in text
    assert text.count("<img") == 1
    assert "&lt;script&gt;" in text
    assert text.count("<tr>") == 2
    assert "<td>0.5000</td>" in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_on_a_phone(tmp_path: Path) -> None:
    write(tmp_path)
    seen = look_at(tmp_path, ["/report.html"])["/report.html"]
    assert seen["title"] == "A report"
    assert seen["broken"] == []
    assert seen["images"] == 1
    assert seen["width"] <= 400
    assert HOSTILE in seen["text"]
