"""Pixels as training sees them, and what is no image."""

from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import mmcv
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mim_plugins.apps.images import class_folders, drop_unreadable, list_images, load_images

HALVES = np.zeros((40, 60, 3), np.uint8)
HALVES[:20] = [200, 50, 10]
HALVES[20:, :30] = [10, 220, 30]


def test_orientation_and_depth_are_those_of_training(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    image = Image.fromarray(HALVES)
    image.save(tmp_path / "exif.png", exif=exif)
    deep = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for mode in ("L", "P", "RGBA", "1", "LA"):
        image.convert(mode).save(tmp_path / f"{mode}.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    paths = list_images(tmp_path)
    assert len(paths) == 8
    for path, loaded in zip(paths, load_images(paths, 32), strict=True):
        read = LoadImageFromFile()({"img_path": str(path)})["img"]
        expected = mmcv.imresize(read, (32, 32), interpolation="bicubic", backend="pillow")
        assert torch.equal(loaded, torch.from_numpy(expected[..., ::-1].copy()).permute(2, 0, 1))
    upright = load_images([tmp_path / "exif.png"], 32)[0]
    assert upright[0, 2:-2, -2:].min() > 150  # what was above is on the right
    assert 120 < load_images([tmp_path / "deep.png"], 32).mean() < 135  # not saturated


def test_what_is_no_image_is_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("cat", ".ipynb_checkpoints", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(HALVES).save(tmp_path / name / "good.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "folder.jpg").mkdir()
    (tmp_path / "cat" / "text.png").write_text("not an image")
    (tmp_path / "cat" / "nothing.png").touch()
    (tmp_path / "cat" / "dangling.png").symlink_to("nowhere.png")
    assert class_folders(tmp_path) == ["cat", "dog"]
    found = list_images(tmp_path)
    assert len(found) == 5
    assert [path.name for path in drop_unreadable(found)] == ["good.png", "good.png"]
    said = capsys.readouterr().err
    assert "skipped 3 of 5 images, unreadable" in said
    assert all(f"cat/{name}.png" in said for name in ("text", "nothing", "dangling"))
    with pytest.raises(ValueError, match=r"text\.png cannot be read"):
        load_images([tmp_path / "cat" / "text.png"], 32)
