"""The report on checkpoints of stock runs."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("networkx", reason="networkx is not installed")

import numpy as np
import torch
from mmengine.runner import CheckpointLoader, set_random_seed
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image

from mim_plugins.__main__ import main
from mim_plugins.analysis import reconstruction_scores
from mim_plugins.apps.checkpoints import (
    draw_masks,
    find_config,
    find_run,
    image_size,
    load_model,
    read_config,
)
from mim_plugins.apps.images import load_images
from mim_plugins.apps.report import find_images
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
    out, data = tmp_path / "report", tmp_path / "data"
    data.mkdir()
    for name in ("chelsea", "coffee", "grass"):
        (data / name).symlink_to(photo_folder / "train" / name)
    arguments = ["--data", str(data), "--out", str(out), "--limit", "15"]
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
    config = read_config(run.config)
    model = load_model(config, run.checkpoint, run.config)
    size = image_size(model, config)
    paths, classes = find_images(data, 15)
    assert len(paths) == 15
    assert len(set(classes)) == 3
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
    config = read_config(run.config)
    model = load_model(config, run.checkpoint, run.config)
    assert image_size(model, config) == 224
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    odd = tmp_path / "a=b"
    moved.rename(odd)
    assert find_run(str(odd)).checkpoint == odd / "epoch_2.pth"
    run = find_run(f"{odd / 'config.py'}={odd / 'epoch_1.pth'}")
    assert (run.config, run.checkpoint) == (odd / "config.py", odd / "epoch_1.pth")


def test_a_script_beside_is_not_run(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("raise SystemExit('run')")
    assert not find_config(tmp_path).is_file()
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "script.py").write_text("raise SystemExit('run')")
    assert find_config(tmp_path / "run").name == "config.py"


@pytest.mark.parametrize("number", [0, 1])
def test_masks_are_drawn_as_in_the_run(number: int, runs: list[Path], photo_folder: Path) -> None:
    """By its pipeline, of the pixels that are read; by the model; or by nobody, which is said."""
    config = read_config(runs[number] / "config.py")
    size, unit, patch = ((224, 16, 16), (192, 32, 4))[number]
    step = {
        "type": "DPPMaskGenerator", "input_size": size, "mask_patch_size": unit,
        "model_patch_size": patch, "tau": 0.0, "kernel": "cosine",
    }  # fmt: skip
    images = load_images(sorted((photo_folder / "test").rglob("0000.png"))[:3], size)

    def build(**changes: object) -> torch.nn.Module:
        preprocessor = {"data_preprocessor": config.data_preprocessor}
        return MODELS.build({**preprocessor, **config.model, **changes}).eval()

    if number == 0:
        masked = {**config.model.backbone, "type": "MaskedMAEViT"}
        model, ratio = build(type="RegularizedMAE", backbone=masked, regularizers=[]), 0.75
        alone = build(backbone={**masked, "masking": {"type": "DPPMasking"}})
    else:
        two = {"type": "ComplementaryMasking", "num_masks": 2, "mask_unit": 32}
        model, ratio = build(), 0.6
        alone = build(type="MISimMIM", masking=two)
    step["mask_ratio"] = ratio
    config.train_dataloader.dataset.pipeline = [step]
    set_random_seed(0)
    mask = draw_masks(model, config, images)[2]
    set_random_seed(0)
    generator = TRANSFORMS.build(step)
    for image, drawn in zip(images.flip(1).permute(0, 2, 3, 1), mask, strict=True):
        assert np.array_equal(generator({"img": image.byte().numpy()})["mask"], drawn)

    config.train_dataloader.dataset.pipeline = [{"type": "LoadImageFromFile"}]
    mask = draw_masks(alone, config, images)[2]
    assert mask.shape == (3, size // patch, size // patch)
    assert mask.float().mean().item() == pytest.approx(ratio, abs=0.02)
    if number == 1:
        with pytest.raises(ValueError, match="must have a mask generator in its pipeline: SimMIM"):
            draw_masks(model, config, images)


def broken(kind: str, good: Path, path: Path) -> Path:
    """A checkpoint that does not hold the model's weights."""
    saved = torch.load(good, weights_only=False)
    weights = saved["state_dict"]
    if kind == "foreign":
        weights = {"foo.bar": torch.zeros(3)}
    elif kind == "empty":
        weights = {}
    elif kind == "part":
        weights = {key: value for key, value in weights.items() if "neck" not in key}
    elif kind == "shapes":
        weights = {key: value[..., :1] for key, value in weights.items()}
    elif kind == "NaN":
        weights = {key: value * torch.nan for key, value in weights.items()}
    torch.save({"state_dict": weights}, path)
    if kind == "list":
        torch.save([1, 2], path)
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:5000])
    elif kind == "junk":
        path.write_bytes(b"junk" * 100)
    elif kind == "nothing":
        path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("foreign", "does not fit the model of"),
        ("empty", "must hold a state_dict of weights"),
        ("part", r"it lacks \d+ of \d+ weights: neck\."),
        ("shapes", r"it has other shapes of \d+ of \d+ weights: \w+\.\w+"),
        ("NaN", "must be finite, got NaN or infinity in backbone."),
        ("list", "must hold a state_dict of weights"),
        ("truncated", "cannot be read"),
        ("junk", "cannot be read"),
        ("nothing", "cannot be read"),
    ],
)
def test_weights_that_were_not_loaded_are_not_scored(
    kind: str, message: str, runs: list[Path], tmp_path: Path
) -> None:
    path = broken(kind, runs[0] / "epoch_1.pth", tmp_path / "broken.pth")
    source = runs[0] / "config.py"
    with pytest.raises(ValueError, match=message) as error:
        load_model(read_config(source), path, source)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_a_distributed_model_fit(runs: list[Path], tmp_path: Path) -> None:
    weights = torch.load(runs[0] / "epoch_1.pth", weights_only=False)["state_dict"]
    torch.save({f"module.{key}": value for key, value in weights.items()}, tmp_path / "ddp.pth")
    model = load_model(read_config(runs[0] / "config.py"), tmp_path / "ddp.pth", "config")
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}", "--data", "{tmp}"], "no config"),
        (["{run}", "--data", "{tmp}"], "class folders"),
        (["{run}", "--data", "{tmp}", "--limit", "0"], "limit"),
        (["{run}", "--data", "{tmp}", "--token", "2", "0"], "token"),
        (["{run}", "--data", "{tmp}", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["{run}", "--data", "{tmp}", "--out", "{tmp}/file"], "file"),
        (["{tmp}/bad.py={run}/epoch_1.pth", "--data", "{photos}"], "bad.py cannot be read"),
        (["{tmp}/none.py={run}/epoch_1.pth", "--data", "{photos}"], "must have a model"),
        (["{tmp}/odd.py={run}/epoch_1.pth", "--data", "{photos}"], "cannot be built"),
        (["{tmp}/vit.py={run}/epoch_1.pth", "--data", "{photos}"], "must be a MAE or SimMIM"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    runs: list[Path],
    photo_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    for name, text in {
        "bad": "model = (",
        "none": "x = 1",
        "odd": "model = dict(type='Nothing')",
        "vit": "model = dict(type='ImageClassifier', backbone=dict(type='LeNet5'))",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    photos = photo_folder / "train"
    filled = [part.format(tmp=tmp_path, run=runs[0], photos=photos) for part in arguments]
    if "--out" not in filled:
        filled += ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as error:
        main(["report", *filled, "--pictures", "2"])
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("number", [0, 1])
def test_show_pictures_masks_and_reconstructions(
    number: int, runs: list[Path], photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Four columns a row: image, masked image, mask filled, everything reconstructed."""
    images = [str(photo_folder / "test" / name / "0000.png") for name in ("chelsea", "coffee")]
    out = tmp_path / "new" / "show.png"
    assert main(["show", str(runs[number]), *images, "--out", str(out)]) == 0
    side = (224, 192)[number]
    with Image.open(out) as picture:
        assert picture.size == (4 * side + 6, 2 * side + 2)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    columns = [pixels[:, :side, i * (side + 2) :][..., :side] for i in range(4)]
    expected = load_images([Path(images[0])], side)[0]
    assert (columns[0] - expected).abs().max() <= 1  # normalised and back
    removed = (columns[1] == 128).all(0) & (columns[0] != 128).any(0)
    assert removed.float().mean().item() == pytest.approx((0.75, 0.6)[number], abs=0.03)
    assert torch.equal(columns[2][:, removed], columns[3][:, removed])
    assert torch.equal(columns[2][:, ~removed], columns[0][:, ~removed])
    # The weights inside fit the config inside, which is run if it is trusted only.
    alone = tmp_path / "alone.pth"
    shutil.copy(runs[number] / "epoch_2.pth", alone)
    with pytest.raises(SystemExit):
        main(["show", str(alone), images[0], "--out", str(out)])
    assert "--trust" in capsys.readouterr().err
    assert main(["show", str(alone), *images, "--out", str(tmp_path / "2.png"), "--trust"]) == 0
    assert (tmp_path / "2.png").read_bytes() == out.read_bytes()
