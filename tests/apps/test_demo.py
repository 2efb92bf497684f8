"""The demo from end to end on a tiny image folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from PIL import Image

from mim_plugins.apps.demo import main, prepare_data


@pytest.mark.slow
def test_from_end_to_end(photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mim_plugins.apps.demo", "--data", photo_folder, "--out", out),
            *("--epochs", "1", "--probe-epochs", "1"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    results = json.loads((out / "results.json").read_text())["results"]
    for runs in results.values():
        assert len(runs) == 1
        assert 0 < runs[0]["loss_random_masks"] < 10
        assert 0 < runs[0]["loss_dpp_masks"] < 10
        assert 1 <= runs[0]["effective_rank"] <= 100
        assert 0 <= runs[0]["linear_accuracy"] <= 100
    assert results["random"][0]["loss_random_masks"] != results["dpp"][0]["loss_random_masks"]
    assert "| DPP masks |" in result.stdout
    with Image.open(out / "report.png") as picture:
        assert picture.width > 500
        assert len(picture.convert("L").getcolors(256)) > 50
    for name in ("random", "dpp"):
        pretrained = torch.load(out / f"{name}_seed0" / "epoch_1.pth", weights_only=False)
        probe = torch.load(out / f"{name}_seed0" / "linear" / "epoch_1.pth", weights_only=False)
        key = "backbone.layers.0.attn.qkv.weight"
        assert torch.equal(probe["state_dict"][key], pretrained["state_dict"][key])


def folder_of_classes(root: Path, images: int) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(images):
            Image.new("RGB", (32, 32)).save(root / name / f"{index}.png")
    return root


def test_a_folder_of_classes_is_split(tmp_path: Path) -> None:
    source = folder_of_classes(tmp_path / "pets", 50)
    data = prepare_data(source, tmp_path / "out")
    assert data.classes == ["cat", "dog"]
    assert (data.train, len(data.test), data.image_size) == (80, 20, 32)
    assert all(path.resolve().is_relative_to(source) for path in data.test)


def test_val_serves_as_test(tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "data" / "train", 40)
    folder_of_classes(tmp_path / "data" / "val", 10)
    data = prepare_data(tmp_path / "data", tmp_path / "out")
    assert (data.train, len(data.test)) == (80, 20)


def test_other_data_take_the_place_of_the_first(tmp_path: Path) -> None:
    first = folder_of_classes(tmp_path / "first", 50)
    (first / "cat").rename(first / "bird")
    second = folder_of_classes(tmp_path / "second", 60)
    prepare_data(first, tmp_path / "out")
    for _ in range(2):
        data = prepare_data(second, tmp_path / "out")
        assert data.classes == ["cat", "dog"]
        assert (data.train, len(data.test)) == (96, 24)
    assert len(list(first.rglob("*.png"))) == 100


def test_output_inside_the_data_is_no_class(tmp_path: Path) -> None:
    source = folder_of_classes(tmp_path, 50)
    for _ in range(2):
        data = prepare_data(source, tmp_path / "out")
        assert data.classes == ["cat", "dog"]
        assert data.train == 80


def test_a_data_folder_of_others_is_not_removed(tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "data", 50)
    for source in (tmp_path / "data", folder_of_classes(tmp_path / "pets", 50)):
        with pytest.raises(ValueError, match="out must not hold a folder data that the demo did"):
            prepare_data(source, tmp_path)
    assert len(list((tmp_path / "data").rglob("*.png"))) == 100


def test_bad_data_fails_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    few = folder_of_classes(tmp_path / "few", 5)
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (32, 32)).save(flat / "0.png")
    for arguments, message in (
        (["--data", str(tmp_path / "none")], "data must be an existing folder, got"),
        (["--data", str(few)], "data must have at least 2 classes, 64 training"),
        (["--data", str(flat)], "of class folders, got 0 classes, 0 and 0 images in"),
        (["--tau", "2"], "tau must be in [0, 1], got 2.0"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as error:
            main([*arguments, "--out", str(tmp_path / "out")])
        assert error.value.code == 2
        assert message in capsys.readouterr().err
