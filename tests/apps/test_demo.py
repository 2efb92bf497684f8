"""The demo from end to end on a tiny image folder."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.config import Config
from PIL import Image

from mim_plugins._configs import config_folder
from mim_plugins.apps.demo import PRETRAIN, PROBE, main, prepare_data

from ..warm import run_script, start_script

# As ``python -m mim_plugins``, but that the stock tool's four runs are forks.
FORKING = f"""
import subprocess
import sys
from types import SimpleNamespace
sys.path.append({str(Path(__file__).parents[2])!r})
from mim_plugins.__main__ import main
from mim_plugins.apps import demo
from tests.warm import Fork
demo.subprocess = SimpleNamespace(**{{**vars(subprocess), "Popen": Fork}})
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_from_end_to_end(photo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = run_script(
        *("-c", FORKING, "demo", "--data", photo_folder, "--out", out),
        *("--epochs", "1", "--probe-epochs", "1"),
        cwd=tmp_path,
    )
    assert code == 0, output[-4000:]
    results = json.loads((out / "results.json").read_text())["results"]
    for runs in results.values():
        assert len(runs) == 1
        assert 0 < runs[0]["loss_random_masks"] < 10
        assert 0 < runs[0]["loss_dpp_masks"] < 10
        assert 1 <= runs[0]["effective_rank"] <= 100
        assert 0 <= runs[0]["linear_accuracy"] <= 100
    assert results["random"][0]["loss_random_masks"] != results["dpp"][0]["loss_random_masks"]
    assert "| DPP masks |" in output
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


@pytest.mark.parametrize(
    ("train", "test"), [("train", "validation"), ("Train", "Test"), ("TRAIN", "valid")]
)
def test_other_names_of_the_splits(train: str, test: str, tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "data" / train, 40)
    folder_of_classes(tmp_path / "data" / test, 10)
    data = prepare_data(tmp_path / "data", tmp_path / "out")
    assert (data.classes, data.train, len(data.test)) == (["cat", "dog"], 80, 20)


def test_train_alone_is_split_and_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    source = folder_of_classes(tmp_path / "data" / "train", 50)
    (source / "cat").rename(source / "it's a {{$HOME:cat}}, 猫")
    for hidden in (source / ".ipynb_checkpoints", tmp_path / "data" / ".git"):
        hidden.mkdir()
        Image.new("RGB", (32, 32)).save(hidden / "0.png")
    data = prepare_data(tmp_path / "data", tmp_path / "out")
    assert data.classes == ["dog", "it's a {{$HOME:cat}}, 猫"]
    assert (data.train, len(data.test)) == (80, 20)


def test_broken_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = folder_of_classes(tmp_path / "data", 50)
    (source / "cat" / "0.png").write_text("not an image")
    (source / "dog" / "1.png").unlink()
    (source / "dog" / "1.png").symlink_to("nowhere")
    data = prepare_data(source, tmp_path / "out")
    assert data.train + len(data.test) == 98
    said = capsys.readouterr().err
    assert "cat/0.png" in said
    assert "dog/1.png" in said


def test_different_classes_are_named(tmp_path: Path) -> None:
    folder_of_classes(tmp_path / "data" / "train", 40)
    folder_of_classes(tmp_path / "data" / "val", 10)
    (tmp_path / "data" / "val" / "cat").rename(tmp_path / "data" / "val" / "bird")
    with pytest.raises(ValueError, match="the same classes in train and test, got bird, cat in"):
        prepare_data(tmp_path / "data", tmp_path / "out")


def test_paths_are_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs take a path as it is, whatever it is called."""
    ran = tmp_path / "ran"
    path = f"it's/{{{{$X:'+open({str(ran)!r},'w').name+'}}}}/{{{{ fileDirname }}}}"
    monkeypatch.setenv("DEMO_DATA", path)
    monkeypatch.setenv("DEMO_CHECKPOINT", path)
    for name in (PRETRAIN.format("random"), PRETRAIN.format("dpp"), PROBE):
        config = Config.fromfile(config_folder() / "demo" / name)
        assert config.train_dataloader.dataset.data_root == path
    assert config.model.backbone.init_cfg.checkpoint == path
    assert not ran.exists()


def test_ending_the_demo_ends_its_trainer(photo_folder: Path, tmp_path: Path) -> None:
    """A signal to the parent alone; the next run starts clean."""
    script = tmp_path / "trainer.py"  # stands for hours of tools/train.py
    script.write_text(
        "import os, sys, time\n"
        "open(sys.argv[3] + '/pid', 'w').write(str(os.getpid()))\n"
        "print('started', flush=True)\n"
        "time.sleep(600)\n"
    )
    code = f"""
import sys
from pathlib import Path
import mim_plugins._configs as configs
configs.mmpretrain_tool = lambda name: Path({str(script)!r})
from mim_plugins.apps.demo import main
main(["--data", {str(photo_folder)!r}, "--out", "out"])
"""
    out = tmp_path / "out"
    for number, end in enumerate((signal.SIGTERM, signal.SIGINT)):
        parent = start_script("-c", code, output=tmp_path / "output", cwd=tmp_path)
        pid = out / "random_seed0" / "pid"
        for _ in range(1200):
            time.sleep(0.1)
            if pid.exists() and pid.read_text():
                break
        child = int(pid.read_text())
        os.kill(child, 0)  # it is there
        (out / "random_seed0" / "epoch_9.pth").touch()
        assert parent.pid is not None
        os.kill(parent.pid, end)
        parent.join(60)
        assert parent.exitcode == (143, 130)[number]
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        pid.unlink()
        if number:
            assert not (out / "random_seed0" / "epoch_8.pth").exists()
        (out / "random_seed0" / "epoch_8.pth").touch()


def test_folders_of_others_are_not_removed(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    mine = tmp_path / "out" / "random_seed0" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(SystemExit):
        main(["--data", str(photo_folder), "--out", str(tmp_path / "out")])
    assert "must not hold a folder random_seed0" in capsys.readouterr().err
    assert mine.exists()


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
        (["--seeds", "0", "-1"], "seeds must be in [0, 2**32), got -1"),
    ):
        with pytest.raises(SystemExit) as error:
            main([*arguments, "--out", str(tmp_path / "out")])
        assert error.value.code == 2
        assert message in capsys.readouterr().err
