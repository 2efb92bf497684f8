"""What the instruments cost: a training step with each hook against the same step without.

    python benchmarks/instruments.py            # small models, CPU
    python benchmarks/instruments.py --large --batch 256    # the stock sizes, in AMP on a GPU
    python benchmarks/instruments.py --picture docs/images/instruments.png    # what they show

Stock configs of mmpretrain and their own ``train_step``; the batch is in memory, so data
loading, which a real step also waits for, does not soften the ratios. Variants take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, times
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

import mim_plugins.mmpretrain  # noqa: F401
from mim_plugins.apps.photos import write_photo_folder

STEPS = 4  # per timing: the least common multiple of the intervals below
VIT = {"embed_dims": 192, "num_layers": 12, "num_heads": 3, "feedforward_channels": 768}
SWIN = {"embed_dims": 48, "depths": [2, 2, 2, 2], "num_heads": [2, 4, 8, 16]}

# Stock config, side of the images, and what makes it small.
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "MAE": (
        "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py",
        64,
        {
            "backbone": {"arch": VIT, "img_size": 64, "patch_size": 8},
            "neck": {
                "num_patches": 64,
                "patch_size": 8,
                "embed_dim": 192,
                "decoder_embed_dim": 96,
                "decoder_depth": 4,
                "decoder_num_heads": 3,
            },
            "head": {"patch_size": 8},
        },
    ),
    "SimMIM": (
        "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py",
        192,
        {"backbone": {"arch": SWIN}, "neck": {"in_channels": 384}},
    ),
    "MoCo v2": (
        "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py",
        64,
        {"backbone": {"depth": 18}, "neck": {"in_channels": 512}, "queue_len": 4096},
    ),
}


def build_runner(name: str, photos: Path, work_dir: Path, batch: int, large: bool) -> Runner:
    """A runner of a stock config that is ready for its first step."""
    base, side, changes = MODELS[name]
    side = 224 if large and name != "SimMIM" else side
    path = work_dir / "config.py"
    path.write_text(f"_base_ = 'mmpretrain::{base}'\n")
    cfg = Config.fromfile(path)
    if not large:
        for part, values in changes.items():
            if isinstance(values, dict):
                for key, value in values.items():
                    cfg.model[part][key] = value
            else:
                cfg.model[part] = values
    pipeline = cfg.train_dataloader.dataset.pipeline
    _resize(pipeline, side)
    cfg.train_dataloader = {
        "batch_size": batch,
        "num_workers": 0,
        "drop_last": True,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "collate_fn": {"type": "default_collate"},
        "dataset": _dataset(photos, "train", pipeline),
    }
    wrapper = "AmpOptimWrapper" if torch.cuda.is_available() else "OptimWrapper"
    cfg.optim_wrapper = {"type": wrapper, "optimizer": {"type": "AdamW", "lr": 1e-4}}
    cfg.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 10**6}
    cfg.param_scheduler, cfg.resume, cfg.randomness = None, False, {"seed": 0}
    cfg.log_level, cfg.work_dir = "ERROR", str(work_dir)
    cfg.experiment_name = f"{name}-{work_dir.name}"
    runner = Runner.from_cfg(cfg)
    # What Runner.train() does before its loop.
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._init_model_weights()
    runner.model.train()
    return runner


def _dataset(photos: Path, split: str, pipeline: list) -> dict:
    root = {"data_root": str(photos), "data_prefix": split}
    return {"type": "CustomDataset", **root, "pipeline": pipeline}


def _resize(node: Any, side: int) -> None:
    """Crops to ``side`` pixels, wherever in a pipeline."""
    if isinstance(node, dict):
        if "Crop" in str(node.get("type")) and "scale" in node:
            node["scale"] = side
        for value in node.values():
            _resize(value, side)
    elif isinstance(node, list):
        for value in node:
            _resize(value, side)


def measure(name: str, photos: Path, args: argparse.Namespace) -> None:
    """Print one row per hook for one algorithm."""
    side = MODELS[name][1]
    test = [{"type": "LoadImageFromFile"}, {"type": "ResizeEdge", "scale": side}]
    test += [{"type": "PackInputs"}]
    val = {"batch_size": args.batch, "dataset": _dataset(photos, "test", test)}
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(name, photos, Path(folder), args.batch, args.large)
        batch = next(iter(runner.train_dataloader))
        variants: dict[str, list[Hook]] = {
            "no hook": [],
            "EffectiveRankHook": [HOOKS.build({"type": "EffectiveRankHook"})],
            "OnlineProbeHook": [HOOKS.build({"type": "OnlineProbeHook", "val_dataloader": val})],
            "OnlineProbeHook, linear_interval=4": [
                HOOKS.build({"type": "OnlineProbeHook", "linear_interval": 4})
            ],
            "OnlineProbeHook, linear=False": [
                HOOKS.build({"type": "OnlineProbeHook", "linear": False, "val_dataloader": val})
            ],
        }
        if name != "MoCo v2":
            picture = {"type": "MaskVisualizationHook", "interval": 1000, "by_epoch": False}
            variants["MaskVisualizationHook"] = [HOOKS.build(picture)]
        for hooks in variants.values():
            for hook in hooks:
                hook.before_train(runner)

        def steps(hooks: list[Hook]) -> Callable[[], None]:
            def run() -> None:
                for step in range(STEPS):
                    runner._train_loop._iter = step
                    for hook in hooks:
                        hook.before_train_iter(runner, step, batch)
                    outputs = runner.model.train_step(batch, runner.optim_wrapper)
                    for hook in hooks:
                        hook.after_train_iter(runner, step, batch, outputs)

            return run

        seconds = times({key: steps(hooks) for key, hooks in variants.items()}, args.repeats)
        stock = seconds["no hook"] / STEPS
        for key, value in seconds.items():
            print(f"| {name} | {key} | {value / STEPS * 1e3:.0f} | {value / STEPS / stock:.3f} |")

        rank = variants["EffectiveRankHook"][0]
        probe, knn = variants["OnlineProbeHook"][0], variants["OnlineProbeHook, linear=False"][0]
        number = len(probe._loaders["val"].dataset), len(probe._loaders["bank"].dataset)
        events = {
            f"EffectiveRankHook, one measurement on {len(rank.images)} images": (
                lambda: rank.measure(runner, 0)
            ),
            f"kNN of {number[0]} images among {number[1]}": lambda: knn.measure(runner, 0),
        }
        if "MaskVisualizationHook" in variants:
            hook = HOOKS.build({"type": "MaskVisualizationHook", "interval": 1, "by_epoch": False})
            events["MaskVisualizationHook, one picture"] = steps([hook])
        taken = times(events, max(1, args.repeats // 3))
        for key, value in taken.items():
            if "picture" in key:
                value = value / STEPS - stock
            print(f"| {name} | {key} | {value * 1e3:.0f} | {value / stock:.1f} steps, each time |")


def picture(photos: Path, out: Path, epochs: int) -> None:
    """Train MAE for a while with every hook and put what they drew on one sheet."""
    from matplotlib.figure import Figure
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        base, side, changes = MODELS["MAE"]
        path = Path(folder, "config.py")
        path.write_text(f"_base_ = 'mmpretrain::{base}'\n")
        cfg = Config.fromfile(path)
        for part, values in changes.items():
            for key, value in values.items():
                cfg.model[part][key] = value
        cfg.model.backbone.arch = {**VIT, "num_layers": 4}
        cfg.model.neck.decoder_depth = 1
        pipeline = cfg.train_dataloader.dataset.pipeline
        _resize(pipeline, side)
        test = [{"type": "LoadImageFromFile"}, {"type": "PackInputs"}]
        cfg.train_dataloader.update(batch_size=30, num_workers=0, persistent_workers=False)
        cfg.train_dataloader.dataset = _dataset(photos, "train", pipeline)
        val = {"batch_size": 64, "dataset": _dataset(photos, "test", test)}
        cfg.custom_hooks = [
            {"type": "EffectiveRankHook", "dataloader": val},
            {"type": "OnlineProbeHook", "val_dataloader": val, "knn_k": 20},
            {"type": "MaskVisualizationHook", "interval": epochs, "num_images": 4},
        ]
        optimizer = {"type": "AdamW", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05}
        cfg.optim_wrapper = {"type": "OptimWrapper", "optimizer": optimizer}
        cfg.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": epochs}
        cfg.param_scheduler, cfg.resume, cfg.randomness = None, False, {"seed": 0}
        cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": -1}
        cfg.work_dir = folder
        runner = Runner.from_cfg(cfg)
        runner.train()
        images = Path(runner.log_dir) / "vis_data" / "vis_image"
        sheet = Figure(figsize=(10, 8.6), layout="constrained")
        axes = sheet.subplot_mosaic("aa;bc", height_ratios=[1, 1.25])
        axes["a"].imshow(Image.open(images / f"singular_spectrum_{epochs}.png"))
        axes["a"].axis("off")
        hub = runner.message_hub
        for metric in ("probe/linear_top1", "probe/knn_top1"):
            axes["b"].plot(range(1, epochs + 1), hub.get_scalar(metric).data[0], label=metric)
        axes["b"].set(xlabel="epoch", ylabel="test accuracy (%)")
        axes["b"].grid(alpha=0.3)
        axes["b"].legend()
        axes["c"].imshow(Image.open(images / f"masks_{epochs}.png"))
        axes["c"].axis("off")
        axes["c"].set_title(f"image, masked, filled in, whole output (epoch {epochs})", size=10)
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.savefig(out, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--large", action="store_true", help="the stock models' own sizes")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--picture", type=Path, help="draw this instead of timing")
    parser.add_argument("--epochs", type=int, default=15, help="of the picture's training")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photo_folder(Path(folder), size=64, train_per_class=20, test_per_class=8)
        if args.picture:
            picture(photos, args.picture, args.epochs)
            return
        print(machine())
        print(f"\nBatch {args.batch}\n")
        print("| algorithm | hook | ms per step | ratio to no hook |\n|---|---|---|---|")
        for name in args.models:
            measure(name, photos, args)


if __name__ == "__main__":
    main()
