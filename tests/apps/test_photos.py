"""The folder of photographs on disk."""

from pathlib import Path

import pytest

pytest.importorskip("skimage", reason="scikit-image is not installed")

from mim_plugins.apps.photos import PHOTOS, write_photo_folder


def test_other_settings_make_the_folder_anew(tmp_path: Path) -> None:
    root = write_photo_folder(tmp_path, 16, train_per_class=2, test_per_class=2)
    (root / "notes.txt").touch()
    first = (root / "train" / "coffee" / "0000.png").read_bytes()
    write_photo_folder(root, 16, train_per_class=1, test_per_class=1, seed=1)
    assert len(list(root.rglob("*.png"))) == 2 * len(PHOTOS)
    assert (root / "train" / "coffee" / "0000.png").read_bytes() != first
    assert (root / "notes.txt").exists()


def test_what_it_did_not_make_stays(tmp_path: Path) -> None:
    (tmp_path / "train" / "mine").mkdir(parents=True)
    (tmp_path / "train" / "mine" / "cat.png").touch()
    write_photo_folder(tmp_path, 16, train_per_class=1, test_per_class=1)
    assert (tmp_path / "train" / "mine" / "cat.png").exists()
