"""Small-scale evidence: stock mmpretrain pre-training of a small model, variants x seeds.

    python benchmarks/cifar.py dppmask --data CIFAR10 --out evidence/dppmask
    python benchmarks/cifar.py umae --data CIFAR10 --out evidence/umae --plot docs/images
    python benchmarks/cifar.py mi_mae --data CIFAR10 --out evidence/mi_mae --epochs 2
    python benchmarks/cifar.py hierarchical --data CIFAR10 --out evidence/hierarchical --seeds 0
    python benchmarks/cifar.py mixmask --data CIFAR100 --out evidence/mixmask --plot docs/images
    python benchmarks/cifar.py whole --data CIFAR10 --out evidence/whole --epochs 32 --resume

CIFAR10 and CIFAR100 are folders with ``train/<class>/`` and ``test/<class>/`` images. Every
run is mmpretrain's own ``tools/train.py`` on one of this repository's configs with the options
of ``EXPERIMENTS``, cut down by ``small``. Checkpoints are read back into upstream's own
backbones and judged by a linear probe (logistic regression on standardised features of
unmasked images), kNN and effective rank; some experiments are watched by this package's hooks
as well. Finished runs are kept in ``results.json`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import machine
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from mmpretrain.models import ResNet_CIFAR, VisionTransformer

from mim_plugins._configs import config_folder, mmpretrain_tool
from mim_plugins.apps import checkpoints as apps
from mim_plugins.apps.images import EXTENSIONS, list_images, load_images

MAE = "demo/mae-random_vit-mini-p8_1xb64-coslr-demo.py"
MOCO = "mixmask/moco-mixmask_resnet18_1xb512-coslr-1000e_cifar100.py"
MI_MAE = "mi_mae/cifar/mi-mae_vit-mini-p4_1xb64-coslr-20e_cifar10.py"
# Of ``whole``, which sees all images for many epochs: half the width and heads, one decoder block.
NARROW = {"embed_dims": 64, "num_layers": 4, "num_heads": 2, "feedforward_channels": 256}
NARROW_DECODER = {
    "embed_dim": 64,
    "decoder_embed_dim": 32,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


class Variant(NamedTuple):
    """A config of this repository, what is changed in it, and how long it trains."""

    base: str
    options: dict[str, Any]
    epochs: float = 1  # times --epochs


def _masks(ratio: float, masking: str, **arguments: Any) -> Variant:
    options = {"model.backbone.mask_ratio": ratio, "model.backbone.masking.type": masking}
    options |= {f"model.backbone.masking.{name}": value for name, value in arguments.items()}
    return Variant(MAE, options)


def _information(**weights: float) -> Variant:
    return Variant(MI_MAE, {f"model.{name}_weight": weight for name, weight in weights.items()})


EXPERIMENTS: dict[str, dict[str, Variant]] = {
    "dppmask": {
        f"{label}, ratio {ratio}": _masks(ratio, masking)
        for ratio in (0.5, 0.75, 0.9)
        for label, masking in (("random", "RandomMasking"), ("DPP", "DPPMasking"))
    },
    "umae": {
        f"lambda {weight:g}": Variant(
            MAE, {"model.type": "UMAE", "model.uniformity_weight": weight}
        )
        for weight in (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
    },
    "mi_mae": {
        "MAE, equal epochs": Variant(MAE, {}),
        "MAE, equal compute": Variant(MAE, {}, epochs=4),
        "4 masks, no terms": _information(cross=0.0, input=0.0),
        "4 masks, both terms": _information(),
        "4 masks, across masks only": _information(input=0.0),
        "4 masks, input only": _information(cross=0.0),
    },
    "hierarchical": {
        f"{sweep} {value}": Variant(
            f"hierarchical/cifar/mae_vit-mini-p{patch}_1xb256-coslr-40e_cifar-32px.py",
            {f"model.backbone.{option}": value / 100 if sweep == "ratio" else value},
        )
        for sweep, values, patch, option in (
            ("ratio", (10, 25, 50, 75, 90), 4, "mask_ratio"),
            ("unit", (2, 4, 8), 2, "masking.mask_unit"),
        )
        for value in values
    },
    "mixmask": {
        "vanilla": Variant(MOCO, {"model.mixing": None}),
        "erase": Variant(MOCO, {"model.mixing": {"type": "EraseMask", "grid_size": 2}}),
        "MixMask": Variant(MOCO, {}),
        "MixMask + Un-Mix": Variant(MOCO, {"model.unmix": {"prob_global": 0.5}}),
    },
}
# At equal compute: a step of MI-MAE reconstructs from four masks.
EXPERIMENTS["whole"] = {
    "MAE": _masks(0.75, "RandomMasking"),
    "DPPMask, pixels": _masks(0.75, "DPPMasking"),
    "DPPMask, own features": _masks(0.75, "DPPMasking", features="encoder"),
    "U-MAE": EXPERIMENTS["umae"]["lambda 0.01"],
    "MI-MAE, a quarter of the epochs": Variant(MI_MAE, {}, epochs=1 / 4),
}
WATCHED = {"umae": ("analysis/effective_rank", "probe/linear_top1"), "mixmask": ("probe/knn_top1",)}


def every(folder: Path, number: int) -> list[int]:
    """Indices of about ``number`` evenly spaced images: they are sorted by class."""
    total = sum(1 for path in folder.rglob("*") if path.is_file())
    return list(range(0, total, max(1, total // number)))


def small(variant: Variant, args: argparse.Namespace) -> Config:
    """The variant's config on part of the data, for few epochs, at a size for one CPU core."""
    os.environ.update({"DEMO_IMAGE_SIZE": "32", "DEMO_PATCH_SIZE": "4"})
    cfg = Config.fromfile(config_folder() / variant.base)
    pipeline = cfg.train_dataloader.dataset.pipeline
    if pipeline[0].type != "LoadImageFromFile":
        pipeline = [{"type": "LoadImageFromFile"}, *pipeline]
    cfg.train_dataloader.update(batch_size=args.batch_size, num_workers=1)
    images = {"type": "CustomDataset", "data_root": str(args.data.resolve())}
    images["extensions"] = EXTENSIONS
    cfg.train_dataloader.dataset = {
        **images,
        "data_prefix": "train",
        "indices": every(args.data / "train", args.images),
        "pipeline": pipeline,
    }
    optimizer = {"type": "AdamW", "lr": 2e-3, "betas": (0.9, 0.95), "weight_decay": 0.05}
    if args.experiment == "mixmask":
        optimizer = {"type": "SGD", "lr": 0.06, "momentum": 0.9, "weight_decay": 5e-4}
        cfg.data_preprocessor.to_rgb = True  # read from files
        cfg.model.backbone.update(base_channels=16, stem_channels=16)
        cfg.model.neck.in_channels = 128
        cfg.model.queue_len = 1024
    cfg.optim_wrapper = {"type": "OptimWrapper", "optimizer": optimizer}
    if args.experiment == "whole":
        cfg.model.backbone.arch = NARROW
        cfg.model.neck.update(NARROW_DECODER)
    epochs = round(args.epochs * variant.epochs)
    cfg.param_scheduler = [
        {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": 50},
        {
            "type": "CosineAnnealingLR",
            "T_max": epochs,
            "by_epoch": True,
            "end": epochs,
            "convert_to_iter_based": True,
        },
    ]
    cfg.train_cfg.max_epochs = epochs
    cfg.default_hooks.checkpoint = {
        "type": "CheckpointHook",
        "interval": max(1, epochs // args.checkpoints),
    }
    cfg.custom_hooks = []
    if args.experiment in WATCHED:
        test = {
            **images,
            "data_prefix": "test",
            "indices": every(args.data / "test", 1000),
            "pipeline": [{"type": "LoadImageFromFile"}, {"type": "PackInputs"}],
        }
        loader = {"batch_size": 250, "num_workers": 0, "dataset": test}
        probe = {"linear_interval": 4, "knn": False, "log_interval": 1000}
        if args.experiment == "mixmask":
            probe = {"linear": False}
        cfg.custom_hooks = [{"type": "OnlineProbeHook", "val_dataloader": loader, **probe}]
        if args.experiment == "umae":
            cfg.custom_hooks.append({"type": "EffectiveRankHook"})
    for key, value in variant.options.items():
        *parents, last = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        node[last] = value
    return cfg


def folder_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a run writes."""
    return args.out / f"{name}_seed{seed}".replace(" ", "_").replace(",", "")


def pretrain(variant: Variant, work_dir: Path, seed: int, args: argparse.Namespace) -> int:
    """Run the stock tool; returns the number of epochs."""
    work_dir.mkdir(parents=True, exist_ok=True)
    cfg = small(variant, args)
    cfg.dump(work_dir / "config.py")
    command = [sys.executable, str(mmpretrain_tool("train")), str(work_dir / "config.py")]
    command += ["--work-dir", str(work_dir), "--cfg-options", f"randomness.seed={seed}"]
    command += ["--resume"] * args.resume  # from the last checkpoint, if there is one
    with (work_dir / "stdout.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    return cfg.train_cfg.max_epochs


def read_split(folder: Path, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Evenly spaced images ``(n, 3, 32, 32)``, 0..255, and their labels."""
    paths = list_images(folder)
    paths = [paths[index] for index in every(folder, number)]
    classes = sorted({path.parent.name for path in paths})
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    return load_images(paths, 32), labels


def encode(checkpoint: Path, images: torch.Tensor) -> torch.Tensor:
    """Features of unmasked images by upstream's backbone, loaded without conversion.

    [CLS] of a ViT, the mean of a ResNet's last map.
    """
    saved = CheckpointLoader.load_checkpoint(str(checkpoint), "cpu")["state_dict"]
    weights = {k.removeprefix("backbone."): v for k, v in saved.items() if k[:9] == "backbone."}
    config = Config.fromfile(checkpoint.parent / "config.py")
    if "cls_token" in weights:
        patch = weights["patch_embed.projection.weight"].shape[-1]
        arch = config.model.backbone.arch
        model = VisionTransformer(arch, img_size=32, patch_size=patch, out_type="cls_token")
    else:
        model = ResNet_CIFAR(depth=18, base_channels=16, stem_channels=16)
    model.eval()  # upstream's train() returns None
    model.load_state_dict(weights)
    preprocessor = config.data_preprocessor
    mean, std = (torch.tensor(preprocessor[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        parts = [model((part - mean) / std)[0] for part in images.split(500)]
    features = torch.cat(parts)
    return features if features.ndim == 2 else features.mean(dim=(2, 3))


def judge(train: torch.Tensor, y: torch.Tensor, test: torch.Tensor, y_test: torch.Tensor) -> dict:
    """Linear probe and kNN accuracy in per cent, effective rank of test features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from mim_plugins.analysis import effective_rank

    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    knn = KNeighborsClassifier(20, weights="distance", metric="cosine")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    ranks = [effective_rank(test[draw]) for draw in order[:1000].split(100)]
    return {
        "linear": 100 * linear.fit(train, y).score(test, y_test),
        "knn": 100 * knn.fit(train, y).score(test, y_test),
        "rank": statistics.mean(ranks),
    }


def load_model(checkpoint: Path) -> torch.nn.Module:
    """The pre-training model of a run, in evaluation mode."""
    config = checkpoint.parent / "config.py"
    return apps.load_model(apps.read_config(config), checkpoint, config)


def reconstruction(checkpoint: Path, images: torch.Tensor) -> dict[str, float]:
    """MSE, PSNR, SSIM and FSIM of whole images reconstructed without masking."""
    from mim_plugins.analysis import reconstruction_scores
    from mim_plugins.mmpretrain import reconstruct

    model = load_model(checkpoint)
    inputs = (images - model.data_preprocessor.mean) / model.data_preprocessor.std
    pairs = [reconstruct(model, part) for part in inputs.split(250)]
    scores = reconstruction_scores(*(torch.cat(side) for side in zip(*pairs, strict=True)))
    return {name: float(values.mean()) for name, values in scores.items()}


def watched(work_dir: Path, names: tuple[str, ...]) -> dict[str, list[float]]:
    """What the hooks logged, epoch by epoch."""
    logged: dict[str, list[float]] = {name: [] for name in names}
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for entry in map(json.loads, path.read_text().splitlines()):
            for name in set(names) & set(entry):
                logged[name].append(entry[name])
    return logged


def run(args: argparse.Namespace) -> None:
    """All runs that are not in ``results.json`` yet."""
    from tqdm import tqdm

    path = args.out / "results.json"
    args.out.mkdir(parents=True, exist_ok=True)
    few = args.experiment != "whole"
    variants = EXPERIMENTS[args.experiment]
    names = [name for name in variants if not args.only or name in args.only]
    todo = [(name, seed) for seed in args.seeds for name in names]
    for name, seed in tqdm(todo, desc=args.experiment, unit="run"):
        key = f"{name} | seed {seed}"
        if key in read_results(path):
            continue
        work_dir = folder_of(args, name, seed)
        epochs = pretrain(variants[name], work_dir, seed, args)
        # Read afterwards: all of CIFAR-10 is a gigabyte that training had better have.
        train, y = read_split(args.data / "train", min(5000, args.images) if few else args.images)
        test, y_test = read_split(args.data / "test", 2500 if few else 10000)
        curve = {}
        for checkpoint in work_dir.glob("epoch_*.pth"):
            epoch = int(checkpoint.stem.split("_")[1])
            features = encode(checkpoint, train), encode(checkpoint, test)
            curve[epoch] = judge(features[0], y, features[1], y_test)
            if epoch < epochs:
                checkpoint.unlink()
        entry = {"curve": dict(sorted(curve.items()))}
        if args.experiment == "hierarchical":
            last = work_dir / f"epoch_{epochs}.pth"
            curve[epochs] |= reconstruction(last, test[:: max(1, len(test) // 500)].clone())
            entry["curve"] = curve
        entry["online"] = watched(work_dir, WATCHED.get(args.experiment, ()))
        results = read_results(path)  # another process may have added to them
        path.write_text(json.dumps({**results, key: entry}, indent=1))


def read_results(path: Path) -> dict[str, Any]:
    """Finished runs by ``<variant> | seed <seed>``."""
    return json.loads(path.read_text()) if path.exists() else {}


def by_variant(results: dict[str, Any]) -> dict[str, list[dict]]:
    """The runs of each variant, over seeds."""
    runs: dict[str, list[dict]] = {}
    for key, entry in results.items():
        runs.setdefault(key.split(" | ")[0], []).append(entry)
    return runs


def table(results: dict[str, Any]) -> str:
    """Markdown: the last checkpoint's figures, mean and range over seeds."""
    titles = {"linear": "linear (%)", "knn": "kNN (%)", "rank": "effective rank"}
    lines = []
    for name, runs in by_variant(results).items():
        last = [run["curve"][max(run["curve"], key=int)] for run in runs]
        if not lines:
            heads = [titles.get(figure, figure) for figure in last[0]]
            lines = [f"| variant | {' | '.join(heads)} | seeds |", "|---" * (len(heads) + 2) + "|"]
        cells = []
        for figure in last[0]:
            values = [entry[figure] for entry in last]
            digits = 1 if figure in titles else 4
            spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" * (len(values) > 1)
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


def plot_training(results: dict[str, Any], experiment: str, path: Path) -> None:
    """What the hooks saw over training and the offline linear accuracy; mean and range."""
    import matplotlib.pyplot as plt

    titles = {
        "analysis/effective_rank": "effective rank",
        "probe/linear_top1": "online linear accuracy (%)",
        "probe/knn_top1": "kNN accuracy (%)",
    }
    names = WATCHED[experiment]
    # one checkpoint makes no curve
    offline = any(len(entry["curve"]) > 1 for entry in results.values())
    panels = len(names) + offline
    figure, axes = plt.subplots(
        1, panels, figsize=(3.7 * panels + 0.4, 3.2), layout="constrained", squeeze=False
    )
    axes = axes[0]

    def draw(axis: Any, epochs: list[int], curves: list[list[float]], label: str) -> None:
        values = torch.tensor(curves)
        axis.plot(epochs, values.mean(dim=0), marker="o", markersize=3, label=label)
        axis.fill_between(epochs, values.amin(dim=0), values.amax(dim=0), alpha=0.15)

    for label, runs in by_variant(results).items():
        for axis, name in zip(axes, names, strict=False):
            curves = [run["online"][name] for run in runs]
            # the rank is also measured before training
            start = 0 if name == "analysis/effective_rank" else 1
            draw(axis, list(range(start, start + len(curves[0]))), curves, label)
            axis.set_title(titles[name], fontsize=10)
        if offline:
            epochs = sorted(map(int, runs[0]["curve"]))
            ends = [[run["curve"][str(epoch)]["linear"] for epoch in epochs] for run in runs]
            draw(axes[-1], epochs, ends, label)
            axes[-1].set_title("offline linear accuracy (%)", fontsize=10)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def plot_intervals(results: dict[str, Any], path: Path, number: int = 10000) -> None:
    """Every run's last linear and kNN accuracy, with its 95 % interval over ``number`` images.

    The intervals are Wilson's, of a share of so many test images; what differs from seed to
    seed is seen from the runs.
    """
    import matplotlib.pyplot as plt
    from scipy.stats import binomtest

    titles = {"linear": "linear accuracy (%)", "knn": "kNN accuracy (%)"}
    figure, axes = plt.subplots(1, len(titles), figsize=(8, 3), layout="constrained", sharey=True)
    variants = by_variant(results)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for row, runs in enumerate(variants.values()):
            for seed, run in enumerate(runs):
                value = run["curve"][max(run["curve"], key=int)][name]
                share = binomtest(round(value / 100 * number), number)
                low, high = (100 * end for end in share.proportion_ci(method="wilson"))
                y = row + 0.16 * (seed - (len(runs) - 1) / 2)
                error = [[value - low], [high - value]]
                axis.errorbar(value, y, xerr=error, fmt="o", color=f"C{row}", capsize=3)
        axis.set_xlabel(title)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(variants)), list(variants))
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def plot_tsne(args: argparse.Namespace, names: list[str], path: Path) -> None:
    """t-SNE of 1000 test images' features of the first seed's final checkpoints."""
    import matplotlib.pyplot as plt
    from sklearn.manifold import TSNE

    images, labels = read_split(args.data / "test", 1000)
    classes = sorted(folder.name for folder in (args.data / "test").iterdir() if folder.is_dir())
    figure, axes = plt.subplots(
        1, len(names), figsize=(3 * len(names) + 1, 3), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        features = encode(folder_of(args, name, args.seeds[0]) / f"epoch_{args.epochs}.pth", images)
        points = TSNE(init="pca", random_state=0).fit_transform(features.numpy())
        for label, of in enumerate(classes):
            axis.scatter(*points[labels == label].T, s=5, color=f"C{label}", label=of)
        axis.set_title(name, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10000, help="training images")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--checkpoints", type=int, default=2, help="judged during training")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--resume", action="store_true", help="go on with runs cut off")
    parser.add_argument("--plot", type=Path, help="folder for pictures of a watched experiment")
    args = parser.parse_args()
    pictured = [*WATCHED, "whole"]
    if args.plot and args.experiment not in pictured:
        parser.error(f"plot needs one of {pictured}, got {args.experiment}")
    run(args)
    results = read_results(args.out / "results.json")
    if args.plot and args.experiment == "whole":
        plot_intervals(results, args.plot / "cifar10_whole.png")
    elif args.plot:
        plot_training(results, args.experiment, args.plot / f"{args.experiment}_training.png")
    if args.plot and args.experiment == "umae":
        plot_tsne(args, list(by_variant(results)), args.plot / "umae_tsne.png")
    print(table(results))
    print(f"\n{args.images} images, {args.epochs} epochs, batch {args.batch_size}; {machine()}")


if __name__ == "__main__":
    main()
