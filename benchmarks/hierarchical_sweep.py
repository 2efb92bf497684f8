"""Which levels of a known hierarchy does a masked autoencoder learn?

    python benchmarks/hierarchical_sweep.py --out docs/images/hierarchical_sweep.png

What the boundary of the mask contributes (section 3.6), against its width in pixels:

    python benchmarks/hierarchical_sweep.py --out docs/images/boundary_sweep.png \\
        --ratios 0.75 --units 4 8 --widths 0 1 2

Trains a small stock MAE of mmpretrain on images of ``mim_plugins.analysis.HierarchicalImages``
once per mask ratio and masking unit, and measures every level of the true latents in the
frozen encoder of whole images, in two ways:

- a nonlinear probe: kernel ridge regression, trained on a few hundred images, on the mean of
  the tokens that show the variable (all of them for the object, a quarter for a part, four
  for a texture). The control is the brightness of masked patches, noise that by Theorem 1
  (Kong et al., CVPR 2023) no visible patch knows, probed from visible tokens: its R^2 must
  be zero or below;
- the share of a level in the features: the variance of the mean token that is due to it, from
  images drawn again with only that level's latents changed (the total Sobol index).

Every run is kept in ``<out>.json``: a broken-off sweep goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from tqdm import tqdm

import mim_plugins.mmpretrain
from mim_plugins.analysis import reconstruction_scores
from mim_plugins.analysis._figure import new_figure
from mim_plugins.analysis.abstraction import mask_abstraction
from mim_plugins.analysis.hierarchical_images import GRID, HierarchicalImages
from mim_plugins.masking import PatchMask
from mim_plugins.mmpretrain import reconstruct

try:
    from .common import machine
except ImportError:
    from common import machine

RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)
UNITS = (4, 8, 16)  # pixels: a patch, a cell, a part
SIZE, PATCH = 32, 4
LEVELS = ("object", "part", "texture", "patch")
MEAN, STD = 127.5, 80.0
UNTRAINED = "untrained"


def build(ratio: float, unit: int, width: int, dims: int, depth: int) -> nn.Module:
    """A stock MAE with mmpretrain's own parts; only masks come from this package."""
    arch = {
        "embed_dims": dims,
        "num_layers": depth,
        "num_heads": 4,
        "feedforward_channels": 4 * dims,
    }
    model = MODELS.build(
        {
            "type": "MAE",
            "data_preprocessor": {
                "type": "SelfSupDataPreprocessor",
                "mean": [MEAN] * 3,
                "std": [STD] * 3,
            },
            "backbone": {
                "type": "MaskedMAEViT",
                "arch": arch,
                "img_size": SIZE,
                "patch_size": PATCH,
                "mask_ratio": ratio,
                "masking": {"type": "RandomMasking", "mask_unit": unit},
            },
            "neck": {
                "type": "MAEPretrainDecoder",
                "num_patches": GRID**2,
                "patch_size": PATCH,
                "embed_dim": dims,
                "decoder_embed_dim": 48,
                "decoder_depth": 1,
                "decoder_num_heads": 4,
            },
            "head": {
                "type": "BoundaryMAEHead",  # of width 0 the stock head
                "width_px": width,
                "patch_size": PATCH,
                "norm_pix": False,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"},
            },
        }
    )
    model.init_weights()
    return model


def feasible(ratio: float, unit: int) -> int | None:
    """Units kept of an image; None if none would be."""
    units = (SIZE // unit) ** 2
    return int(units * (1 - ratio)) or None


def train(model: nn.Module, data: Tensor, steps: int, batch: int, title: str, seed: int) -> float:
    """AdamW with warm-up and cosine decay; returns the mean loss of the last 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    losses: list[Tensor] = []
    model.train()
    bar = tqdm(range(steps), desc=title, leave=False, mininterval=1)
    for _ in bar:
        chosen = torch.randint(len(data), (batch,), generator=generator).to(data.device)
        loss = model.loss(data[chosen], None)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if len(losses) % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return torch.stack(losses[-50:]).mean().item()


def probe(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    """R^2 on test images of a kernel ridge regression, averaged over outputs."""
    regression = make_pipeline(
        StandardScaler(),
        Nystroem(gamma=0.5 / train_x.shape[1], n_components=300, random_state=0),
        StandardScaler(with_std=False),
        RidgeCV(alphas=np.logspace(-4, 2, 7)),
    )
    regression.fit(train_x.cpu().numpy(), train_y.cpu().numpy())
    predicted = torch.as_tensor(regression.predict(test_x.cpu().numpy())).view(len(test_y), -1)
    truth = test_y.cpu().double().view(len(test_y), -1)
    residual = (truth - predicted).square().sum(dim=0)
    total = (truth - truth.mean(dim=0)).square().sum(dim=0)
    return (1 - residual / total).mean().item()


def accuracy(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    """Accuracy of the same regression on one-hot labels."""
    classifier = make_pipeline(
        StandardScaler(),
        Nystroem(gamma=0.5 / train_x.shape[1], n_components=300, random_state=0),
        RidgeCV(alphas=np.logspace(-4, 2, 7)),
    )
    onehot = torch.nn.functional.one_hot(train_y).numpy() * 2.0 - 1.0
    classifier.fit(train_x.cpu().numpy(), onehot)
    chosen = torch.as_tensor(classifier.predict(test_x.cpu().numpy())).argmax(dim=1)
    return (chosen == test_y).double().mean().item()


def blocks(tokens: Tensor, side: int) -> Tensor:
    """``(n, 64, D)`` to the mean tokens of ``side`` x ``side`` blocks, ``(n, side**2, D)``."""
    grid = tokens.unflatten(1, (side, GRID // side, side, GRID // side))
    return grid.mean(dim=(2, 4)).flatten(1, 2)


def preprocess(images: Tensor) -> Tensor:
    """As the model's own preprocessor has it."""
    return (images * 255 - MEAN) / STD


def all_images(data: HierarchicalImages) -> Tensor:
    parts = torch.arange(len(data)).split(2000)
    return preprocess(torch.cat([data.images(index) for index in parts]))


@torch.no_grad()
def encode(model: nn.Module, images: Tensor, mask: PatchMask | None = None) -> Tensor:
    """Patch tokens ``(n, N or K, D)`` on the CPU; all images get the same mask, if any."""
    tokens = []
    device = next(model.parameters()).device
    for part in images.to(device).split(256):
        if mask is None:
            tokens.append(model.backbone(part, mask=None)[-1])
        else:
            ids = mask.ids_shuffle.to(device).expand(len(part), -1)
            tokens.append(model.backbone(part, mask=PatchMask(ids, mask.num_keep))[0])
    return torch.cat(tokens)[:, 1:].cpu()


def measure_probes(
    model: nn.Module, splits: dict[str, tuple[HierarchicalImages, Tensor]], masked: bool
) -> dict[str, float]:
    """Accuracy for the object, R^2 for parts, textures and, with a mask, the control."""
    torch.manual_seed(7)
    mask = model.backbone.draw_mask(splits["test"][1][:1]) if masked else None
    pairs: dict[str, list[Tensor]] = {}
    for data, images in splits.values():
        tokens = encode(model, images)
        latents = data.latents
        pairs.setdefault("object", []).extend([tokens.mean(dim=1), latents.object])
        for name, side in (("part", 2), ("texture", 4)):
            features = blocks(tokens, side).flatten(0, 1)
            truth = getattr(latents, name).flatten(0, 1)
            # As many labelled variables as images, so that levels compare.
            pick = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))
            pick = pick[: len(data)]
            pairs.setdefault(name, []).extend([features[pick], truth[pick]])
        if mask is not None:
            visible = encode(model, images, mask).mean(dim=1)
            pairs.setdefault("control", []).extend([visible, latents.patch[:, mask.ids_mask[0]]])
    return {name: (accuracy if name == "object" else probe)(*pair) for name, pair in pairs.items()}


def measure_shares(model: nn.Module, data: HierarchicalImages) -> dict[str, float]:
    """Total Sobol index of each level's latents, and of the noise, in the mean token.

    E |f(x) - f(x')|^2 / (2 Var f), where x' shares all latents with x but one level's.
    """
    number = len(data)
    index = torch.arange(number)
    other = HierarchicalImages(number, data.image_size, data.num_objects, data.noise, seed=9)
    before = encode(model, preprocess(data.images(index))).mean(dim=1)
    variance = 2 * (before - before.mean(dim=0)).square().sum() * number / (number - 1)
    shares = {}
    for level in (*LEVELS, "noise"):
        if level == "noise":
            images = other.images(index, data.latents)
        else:
            changed = data.latents._replace(**{level: getattr(other.latents, level)})
            images = data.images(index, changed)
        after = encode(model, preprocess(images)).mean(dim=1)
        shares[f"share_{level}"] = ((after - before).square().sum() / variance).item()
    return shares


@torch.no_grad()
def measure(
    model: nn.Module, splits: dict[str, tuple[HierarchicalImages, Tensor]], masked: bool
) -> dict[str, float]:
    """Probes, shares, and the scores of unmasked reconstructions."""
    model.eval()
    images = splits["test"][1][:256].to(next(model.parameters()).device)
    scores = reconstruction_scores(*reconstruct(model, images))
    return {
        **measure_probes(model, splits, masked),
        **measure_shares(model, splits["test"][0]),
        **{name: value.mean().item() for name, value in scores.items()},
    }


@torch.no_grad()
def theory(ratio: float, unit: int) -> float:
    """Mean height of the latents that Theorem 1 locates for the masks of a run."""
    torch.manual_seed(0)
    masking = mim_plugins.masking.RandomMasking(mask_ratio=ratio, patch_size=PATCH, mask_unit=unit)
    mask = masking(torch.zeros(512, 1, SIZE, SIZE)).mask
    return mask_abstraction(HierarchicalImages.hierarchy(), mask).height.nanmean().item()


COLUMNS = {
    "object": "object acc.",
    "part": "part R²",
    "texture": "texture R²",
    "control": "control R²",
    **{f"share_{level}": f"share of {level}" for level in (*LEVELS, "noise")},
    "mse": "MSE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "fsim": "FSIM",
}


def table(runs: dict[str, dict]) -> str:
    """Markdown, means over seeds, one row per unit and ratio."""
    lines = [
        "| unit | ratio | boundary | height of c | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (4 + len(COLUMNS)) + "|",
    ]
    for unit, ratio, width, group in grouped(runs):
        if unit is None:
            head = f"| {UNTRAINED} | | | |"
        else:
            head = f"| {unit} px | {ratio:g} | {width} px | {group[0]['height']:.2f} |"
        cells = []
        for name in COLUMNS:
            values = [run[name] for run in group if name in run]
            digits = {"mse": 4, "psnr": 1}.get(name, 2)
            cells.append(f"{statistics.mean(values):.{digits}f}" if values else "")
        lines.append(head + " " + " | ".join(cells) + " |")
    return "\n".join(lines)


Group = tuple[int | None, float | None, int | None, list[dict]]


def grouped(runs: dict[str, dict]) -> list[Group]:
    """Unit, ratio, width and the runs of all seeds together; the untrained first."""
    groups: dict[tuple, list[dict]] = {}
    for run in runs.values():
        key = (run.get("unit"), run.get("ratio"), run.get("width"))
        groups.setdefault(key, []).append(run)
    ordered = sorted(groups, key=lambda key: [part or 0 for part in key])
    return [(*key, groups[key]) for key in ordered]


def plot(runs: dict[str, dict], path: Path) -> None:
    """Each level, and the height that the theory predicts, against mask ratio or width."""
    widths = {run["width"] for run in runs.values() if "width" in run}
    axis_name, axis_key = ("mask ratio", "ratio")
    if len(widths) > 1:
        axis_name, axis_key = ("width of the boundary (pixels)", "width")
    ticks = sorted({run[axis_key] for run in runs.values() if axis_key in run})
    panels = (
        ("object", "object: accuracy of the probe"),
        ("part", "part: R² of the probe"),
        ("texture", "texture: R² of the probe"),
        ("control", "noise of masked patches: R² (control)"),
        ("share_object", "object: share of the features' variance"),
        ("share_part", "part: share"),
        ("share_texture", "texture: share"),
        ("height", "theory: mean height of located latents"),
    )
    figure, axes = new_figure(2, 4)
    for axis, (name, title) in zip(axes.flat, panels, strict=True):
        for unit in UNITS:
            groups = [g for u, _, _, g in grouped(runs) if u == unit and name in g[0]]
            if not groups:
                continue
            ratios = [group[0][axis_key] for group in groups]
            values = [[run[name] for run in group] for group in groups]
            means = [statistics.mean(v) for v in values]
            (line,) = axis.plot(ratios, means, "o-", markersize=4, label=f"unit {unit} px")
            if len(values[0]) > 1:
                low, high = [min(v) for v in values], [max(v) for v in values]
                axis.fill_between(ratios, low, high, alpha=0.2, color=line.get_color())
        untrained = [g for u, *_, g in grouped(runs) if u is None and name in g[0]]
        if untrained:
            level = statistics.mean(run[name] for run in untrained[0])
            axis.axhline(level, color="grey", linestyle="--", label=UNTRAINED)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(axis_name)
        axis.set_xticks(ticks)
        axis.set_ylim(*(0.8, 3.2) if name == "height" else (-0.05, 1.05))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=80)


def title(run: dict) -> str:
    """What a run is kept under."""
    if "unit" not in run:
        return f"{UNTRAINED} seed {run['seed']}"
    return "unit {unit} ratio {ratio:g} width {width} seed {seed}".format(**run)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="picture; runs go to <out>.json")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--units", type=int, nargs="+", default=UNITS, choices=UNITS)
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[0], help="of the boundary that does not count"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--images", type=int, default=20000, help="training images")
    parser.add_argument("--probe-images", type=int, default=300, help="labelled images of a probe")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    MMLogger.get_current_instance().setLevel("ERROR")  # each initialised weight is logged
    init_default_scope("mmpretrain")
    settings = {
        name: value
        for name, value in vars(args).items()
        if name in ("steps", "batch", "dims", "depth", "images", "probe_images")
    }
    store = args.out.with_suffix(".json")
    kept = json.loads(store.read_text()) if store.exists() else {}
    if kept and kept["settings"] != settings:
        parser.error(f"{store} holds a sweep with other settings, {kept['settings']}")
    runs: dict[str, dict] = kept.get("runs", {})

    pretraining = all_images(HierarchicalImages(args.images, SIZE, seed=0)).to(args.device)
    sets = {
        "train": HierarchicalImages(args.probe_images, SIZE, seed=1),
        "test": HierarchicalImages(1000, SIZE, seed=2),
    }
    splits = {name: (data, all_images(data)) for name, data in sets.items()}

    if len(args.widths) > 1 and len(args.ratios) > 1:
        parser.error("several widths need one ratio")
    todo: list[dict] = []
    for seed in args.seeds:
        todo.append({"seed": seed})  # untrained
        seen = set()
        for unit, ratio, width in product(args.units, args.ratios, args.widths):
            keep = feasible(ratio, unit)
            if keep is not None and (unit, keep, width) not in seen:  # else the same masks
                seen.add((unit, keep, width))
                todo.append({"seed": seed, "unit": unit, "ratio": ratio, "width": width})
    bar = tqdm([item for item in todo if title(item) not in runs], unit="run")
    for run in bar:
        name, unit, ratio = title(run), run.get("unit"), run.get("ratio")
        bar.set_description(name)
        start, cpu_start = time.time(), time.process_time()
        torch.manual_seed(run["seed"])
        sizes = (args.dims, args.depth)
        model = build(ratio or 0.75, unit or PATCH, run.get("width", 0), *sizes).to(args.device)
        if unit is not None:
            run["loss"] = train(model, pretraining, args.steps, args.batch, name, run["seed"])
            run["height"] = theory(ratio, unit)
        run |= measure(model, splits, masked=unit is not None)
        run["seconds"], run["cpu_seconds"] = time.time() - start, time.process_time() - cpu_start
        runs[name] = run
        kept = {"settings": settings, "machine": machine(), "runs": runs}
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(kept, indent=1))
    plot(runs, args.out)
    print(table(runs))


if __name__ == "__main__":
    main()
