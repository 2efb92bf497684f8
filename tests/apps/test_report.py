"""The report on checkpoints of stock runs."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("networkx", reason="networkx is not installed")

import torch
from mmengine.runner import CheckpointLoader
from PIL import Image

from mim_plugins.__main__ import main
from mim_plugins.analysis import reconstruction_scores
from mim_plugins.apps.demo import load_images
from mim_plugins.apps.report import find_images, find_run, load_run
from mim_plugins.mmpretrain import reconstruct

from ..mmpretrain.algorithms import build_runner

MAE = "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py"
SIMMIM = "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py"


@pytest.fixture(scope="module")
def runs(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, key in (("mae", MAE), ("simmim", SIMMIM)):
        build_runner(key, photo_folder, folder / name).train()
    return [folder / "mae", folder / "simmim"]


def test_report_on_stock_mae_and_simmim(
    runs: list[Path], photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "report"
    arguments = ["--data", str(photo_folder / "train"), "--out", str(out), "--limit", "75"]
    assert main(["report", *map(str, runs), *arguments, "--pictures", "3"]) == 0
    assert "| mae | 0.75 |" in capsys.readouterr().out
    text = (out / "report.md").read_text()
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if "](" in line]
    assert {"scores.png", "reconstructions.png", "tsne.png", "cls_map.png"} <= set(pictures)
    assert any(picture.startswith("token_map") for picture in pictures)
    for picture in pictures:
        with Image.open(out / picture) as image:
            # Drawn upon: more than a handful of colours.
            assert len(image.convert("RGB").getcolors(maxcolors=2**24)) > 50

    figures = json.loads((out / "report.json").read_text())
    assert figures["simmim"]["mask_ratio"] == pytest.approx(0.6, abs=0.02)
    assert figures["simmim"]["height"] > 2.9  # units of 32 pixels are 8 x 8 patches
    assert 0 < figures["mae"]["separability"] <= 1
    # The scores by hand.
    run = find_run(str(runs[0]))
    model, _, size = load_run(run)
    paths, classes = find_images(photo_folder / "train", 75)
    assert len(paths) == 75
    assert len(set(classes)) == 15
    batch = {"inputs": load_images(paths, size).flip(1), "data_samples": None}
    scores = reconstruction_scores(*reconstruct(model, model.data_preprocessor(batch)["inputs"]))
    for key in ("mse", "psnr", "ssim", "fsim"):
        assert figures["mae"][key] == pytest.approx(scores[key].mean().item(), rel=1e-3)


def test_finds_runs(runs: list[Path], tmp_path: Path) -> None:
    assert find_run(str(runs[0])).checkpoint.name == "epoch_2.pth"
    moved = tmp_path / "moved"
    shutil.copytree(runs[0], moved)  # last_checkpoint still names the original
    assert find_run(str(moved)).checkpoint == moved / "epoch_2.pth"
    run = find_run(f"{moved / 'config.py'}={moved / 'epoch_1.pth'}")
    assert run.name == "moved/epoch_1"
    weights = CheckpointLoader.load_checkpoint(str(run.checkpoint), "cpu")["state_dict"]
    model, _, size = load_run(run)
    assert size == 224
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}", "--data", "{tmp}"], "no config"),
        (["{run}", "--data", "{tmp}"], "class folders"),
        (["{run}", "--data", "{tmp}", "--limit", "0"], "limit"),
        (["{run}", "--data", "{tmp}", "--token", "2", "0"], "token"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    runs: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    filled = [part.format(tmp=tmp_path, run=runs[0]) for part in arguments]
    with pytest.raises(SystemExit):
        main(["report", *filled])
    assert message in capsys.readouterr().err
