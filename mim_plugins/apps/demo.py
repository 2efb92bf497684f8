"""The main job: pre-train with random and DPP masks, probe both, look at the result.

    python -m mim_plugins demo [--data FOLDER] [--out demo_output]

Pre-training and linear probes are mmpretrain's own ``tools/train.py``, unchanged, on the
configs of ``configs_mmpretrain/demo``. Writes ``report.png``, ``results.md`` and
``results.json`` to the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._check import check_int, check_share
from ..analysis import effective_rank
from ..analysis._figure import picture_grid
from . import command_parser, markdown_table
from .images import (
    EXTENSIONS,
    class_folders,
    drop_unreadable,
    list_images,
    load_images,
    read_image,
)

MASKINGS = {"random": "random masks", "dpp": "DPP masks"}  # as the configs are called: in words
PRETRAIN = "mae-{}_vit-mini-p8_1xb64-coslr-demo.py"
PROBE = "vit-mini-p8_1xb64-linear-coslr-demo.py"
RANK_IMAGES = 100  # U-MAE, appendix B.1
PICTURES = 6
LIGHT_GREY = 0.82
RESULTS = ("report.png", "results.md", "results.json")
OURS = ".demo"  # marks a folder that a later run may remove
TEST_NAMES = ("test", "val", "validation", "valid")  # in any case


class Data(NamedTuple):
    """An image folder with ``train`` and ``test`` splits."""

    root: Path
    name: str
    classes: list[str]
    train: int
    test: list[Path]
    image_size: int


def fresh_folder(folder: Path) -> Path:
    """Make an empty folder, in place of one that an earlier run made.

    Raises:
        ValueError: If it exists and the demo did not mark it as its own.
    """
    if folder.exists():
        if not (folder / OURS).exists():
            raise ValueError(
                f"out must not hold a folder {folder.name} that the demo did not mark as its own "
                f"(remove {folder} or choose another out), got {folder.parent}"
            )
        shutil.rmtree(folder)  # of links, not what they point to
    folder.mkdir(parents=True)
    (folder / OURS).touch()
    return folder


def prepare_data(folder: Path | None, out: Path) -> Data:
    """Make ``train`` and ``test`` folders of classes, as links to images that can be read.

    Args:
        folder: ``None`` for the embedded photographs; a folder with ``train`` and ``test``
            (or ``val``, ``valid``, ``validation``; in any case) sub-folders of classes; or a
            folder of classes, or with ``train`` alone, of which every fifth image becomes a
            test image.
        out: Where the links are made.

    Raises:
        ImportError: If the packages of the embedded photographs are not installed.
        ValueError: If the folder does not hold labelled images.
    """
    if folder is None:
        from .photos import write_photo_folder

        root = write_photo_folder(out / "photos")
        name = "15 photographs of scikit-image and sklearn"
    else:
        if not folder.is_dir():
            raise ValueError(f"data must be an existing folder, got {folder}")
        root, name = _link_splits(folder.resolve(), out / "data"), folder.name
    classes, test_classes = class_folders(root / "train"), class_folders(root / "test")
    train, test = list_images(root / "train"), list_images(root / "test")
    if len(classes) < 2 or len(train) < 64 or len(test) < 16:
        raise ValueError(
            f"data must have at least 2 classes, 64 training and 16 test images "
            f"({', '.join(EXTENSIONS)}) in class folders, or in train and test (or val) folders "
            f"of class folders, got {len(classes)} classes, {len(train)} and {len(test)} images "
            f"in {folder}"
        )
    if differing := sorted(set(classes) ^ set(test_classes)):
        raise ValueError(
            "data must have the same classes in train and test, got "
            f"{', '.join(differing[:3])} in one only of {folder}"
        )
    image = read_image(train[0])
    image_size = 32 if image is not None and min(image.shape[:2]) <= 48 else 64
    return Data(root, name, classes, len(train), test, image_size)


def _link_splits(source: Path, target: Path) -> Path:
    """Make ``target/{train,test}`` of links into ``source``, in place of earlier ones."""
    fresh_folder(target)
    folders = {path.name.lower(): path for path in sorted(source.iterdir()) if path.is_dir()}
    train = folders.get("train")
    # A class may be called train: then it holds images, not classes.
    if train is None or not class_folders(train):
        splits = {"": source}
    else:
        found = (folders[name] for name in TEST_NAMES if name in folders)
        test = next((path for path in found if class_folders(path)), None)
        splits = {"": train} if test is None else {"train": train, "test": test}
    images = [
        (split, root, name, path)
        for split, root in splits.items()
        for name in class_folders(root)
        if not target.is_relative_to(root / name)  # the output may lie inside the data
        for path in list_images(root / name)
    ]
    readable = set(drop_unreadable([path for *_, path in images]))
    seen: Counter[str] = Counter()
    for split, root, name, path in images:
        if path in readable:
            seen[name] += 1
            part = split or ("train" if seen[name] % 5 else "test")
            link = target / part / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return target


def run_stock_tool(
    config: Path, work_dir: Path, seed: int, title: str, env: dict[str, str]
) -> None:
    """Run mmpretrain's ``tools/train.py`` with a progress bar over its iterations.

    Raises:
        RuntimeError: If the tool fails; with the end of its output.
    """
    from tqdm import tqdm

    from .._configs import mmpretrain_tool

    command = [
        *(sys.executable, str(mmpretrain_tool("train")), str(config)),
        *("--work-dir", str(work_dir), "--cfg-options", f"randomness.seed={seed}"),
    ]
    last: deque[str] = deque(maxlen=60)
    with (
        tqdm(desc=title, unit="epoch", bar_format="{l_bar}{bar:30}{r_bar}") as bar,
        subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        bar.total = int(env["DEMO_PROBE_EPOCHS" if config.name == PROBE else "DEMO_EPOCHS"])
        try:
            for line in process.stdout:
                last.append(line)
                step = re.search(r"Epoch\(train\) +\[(\d+)\]\[ *(\d+)/(\d+)\].* loss: (\S+)", line)
                if step:
                    epoch, done, of = (int(step[i]) for i in (1, 2, 3))
                    bar.n = round(epoch - 1 + done / of, 1)
                    bar.set_postfix_str(f"loss {float(step[4]):.3f}")
            process.wait()
        except BaseException:  # this process is being ended: so is the trainer
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        if process.returncode == 0:
            bar.n = bar.total
            bar.refresh()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{''.join(last)}")


COLUMNS = {
    "loss_random_masks": ("loss, random masks", 3),
    "loss_dpp_masks": ("loss, DPP masks", 3),
    "linear_accuracy": ("linear accuracy (%)", 1),
    "effective_rank": ("effective rank", 1),
}  # of the table, with the digits after the point


@torch.no_grad()
def measure(
    models: dict[str, Any], images: Tensor, seed: int
) -> tuple[dict[str, dict[str, float]], list[tuple[str, Tensor]]]:
    """Reconstruction losses and effective ranks on test images, and examples to look at.

    Returns:
        Per model a dict of figures; and columns of pictures: the originals, and for each model
        what its masks leave of them and what it makes of that.
    """
    torch.manual_seed(seed)
    preprocessor = models["random"].data_preprocessor
    mean, std = preprocessor.mean, preprocessor.std
    inputs = (images - mean) / std
    # One draw of masks of each kind, shared by both models.
    masks = {name: model.backbone.draw_mask(inputs) for name, model in models.items()}
    order = torch.randperm(len(inputs))
    draws = [d for d in order.split(RANK_IMAGES) if len(d) == RANK_IMAGES] or [order]
    # Evenly spaced: the test images are sorted by class.
    shown = torch.linspace(0, len(images) - 1, PICTURES).long()
    original = images[shown] / 255
    figures: dict[str, dict[str, float]] = {name: {} for name in models}
    pictures = [("original", original)]
    for name, model in models.items():
        for mask_name, mask in masks.items():
            latent, hidden, ids_restore = model.backbone(inputs, mask=mask)
            prediction = model.neck(latent, ids_restore)
            loss = model.head.loss(prediction, inputs, hidden).item()
            figures[name][f"loss_{mask_name}_masks"] = loss
            if mask_name == name:
                patches = prediction[shown]
                removed = model.head.unpatchify(hidden[shown, :, None].expand_as(patches)).bool()
                predicted = (model.head.unpatchify(patches) * std + mean) / 255
                pictures += [
                    (MASKINGS[name].removesuffix("s"), original.masked_fill(removed, LIGHT_GREY)),
                    ("reconstruction", torch.where(removed, predicted, original)),
                ]
        tokens = model.backbone(inputs, mask=None)[0]
        ranks = [effective_rank(tokens[draw, 0]) for draw in draws]
        figures[name]["effective_rank"] = statistics.mean(ranks)
    return figures, pictures


def accuracy(work_dir: Path) -> float:
    """Top-1 accuracy (per cent) in mmengine's scalars of a run that ended with a validation."""
    (scalars,) = work_dir.glob("*/vis_data/scalars.json")
    return json.loads(scalars.read_text().splitlines()[-1])["accuracy/top1"]


def table(results: dict[str, list[dict]]) -> str:
    """Markdown table, mean and standard deviation over seeds."""
    rows = [["pre-trained with", *(title for title, _ in COLUMNS.values())]]
    for name, runs in results.items():
        cells = [MASKINGS[name]]
        for column, (_, digits) in COLUMNS.items():
            values = [run[column] for run in runs]
            cell = f"{statistics.mean(values):.{digits}f}"
            if len(values) > 1:
                cell += f" ± {statistics.stdev(values):.{digits}f}"
            cells.append(cell)
        rows.append(cells)
    return markdown_table(rows)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def main(argv: list[str] | None = None) -> None:
    parser = command_parser("demo", __doc__)
    parser.add_argument("--data", type=Path, help="image folder; default: embedded photographs")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument("--epochs", type=int, help="of pre-training; default: by the data's size")
    parser.add_argument("--probe-epochs", type=int, help="of each linear probe; default: likewise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tau", type=float, default=0.5, help="of DPPMasking")
    args = parser.parse_args(argv)
    needed = ("mmpretrain", "matplotlib", "tqdm")
    if missing := [name for name in needed if find_spec(name) is None]:
        parser.error(
            f"the demo needs {', '.join(missing)}: pip install 'mim_plugins[mmpretrain,analysis]'"
        )
    try:
        check_share("tau", args.tau)
        for name in ("epochs", "probe_epochs"):
            if getattr(args, name) is not None:
                check_int(name, getattr(args, name))
        if bad := [seed for seed in args.seeds if not 0 <= seed < 2**32]:
            raise ValueError(f"seeds must be in [0, 2**32), got {bad[0]}")
        args.out.mkdir(parents=True, exist_ok=True)
        for name in RESULTS:  # of an earlier run, which this one replaces
            (args.out / name).unlink(missing_ok=True)
        data = prepare_data(args.data, args.out.resolve())
        for seed in args.seeds:
            for name in MASKINGS:
                fresh_folder(args.out / f"{name}_seed{seed}")
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run(args, data)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def run(args: argparse.Namespace, data: Data) -> None:
    """Train, measure and write the results."""
    from .._configs import config_folder
    from .checkpoints import find_run, load_model, read_config

    start = time.time()
    large = data.train > 5000
    env = {
        "DEMO_DATA": str(data.root),
        "DEMO_NUM_CLASSES": str(len(data.classes)),
        "DEMO_IMAGE_SIZE": str(data.image_size),
        "DEMO_PATCH_SIZE": str(data.image_size // 8),
        "DEMO_EPOCHS": str(args.epochs or (10 if large else 18)),
        "DEMO_PROBE_EPOCHS": str(args.probe_epochs or (5 if large else 8)),
        "DEMO_BATCH_SIZE": str(256 if large else 64),
        "DEMO_TAU": str(args.tau),
    }
    configs = config_folder() / "demo"
    results: dict[str, list[dict]] = {name: [] for name in MASKINGS}
    for seed in args.seeds:
        models, accuracies = {}, {}
        for name, masks in MASKINGS.items():
            work_dir, title = args.out / f"{name}_seed{seed}", f"{masks}, seed {seed}"
            recipe = configs / PRETRAIN.format(name)
            run_stock_tool(recipe, work_dir, seed, f"pre-train, {title}", env)
            trained = find_run(str(work_dir))
            config = read_config(trained.config)
            models[name] = load_model(config, trained.checkpoint, trained.config)
            work_dir, title = work_dir / "linear", f"linear probe, {title}"
            probe_env = {**env, "DEMO_CHECKPOINT": str(trained.checkpoint)}
            run_stock_tool(configs / PROBE, work_dir, seed, title, probe_env)
            accuracies[name] = accuracy(work_dir)
        pick = data.test[:: max(1, len(data.test) // 1000)]
        figures, pictures = measure(models, load_images(pick, data.image_size), seed)
        for name, runs in results.items():
            runs.append({**figures[name], "linear_accuracy": accuracies[name]})
        if seed == args.seeds[0]:
            picture_grid(pictures)[0].savefig(args.out / "report.png", dpi=110)

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "mmengine", "mmpretrain"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    text = (
        f"{table(results)}\n\n"
        f"Data: {data.name}, {len(data.classes)} classes, {data.train} training and "
        f"{len(data.test)} test images, {data.image_size} px. ViT of 4 layers, width 128, patch "
        f"{env['DEMO_PATCH_SIZE']}, mask ratio 0.75, tau {args.tau}; {env['DEMO_EPOCHS']} epochs "
        f"of pre-training, {env['DEMO_PROBE_EPOCHS']} of linear probing; seeds "
        f"{', '.join(map(str, args.seeds))}. {_processor()}; {gpu}; {versions}; "
        f"{time.time() - start:.0f} s. The loss is the stock mean squared error on masked patches "
        "of test images; effective rank is that of [CLS] features of 100 test images at a time.\n"
    )
    (args.out / "results.md").write_text(text)
    (args.out / "results.json").write_text(
        json.dumps({"settings": env, "seeds": args.seeds, "results": results}, indent=2)
    )
    print(f"\n{text}\nPicture: {args.out / 'report.png'}")
