"""What DPP masks look like and do: the tables and pictures of docs/dppmask.md.

make demo                                             # trains the backbone used here
python benchmarks/dpp_evidence.py kernels             # agreement of kernels and features
python benchmarks/dpp_evidence.py masks               # docs/images/dpp_masks.png
python benchmarks/dpp_evidence.py alignment           # docs/images/dpp_alignment.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from common import photo_batch

from mim_plugins.analysis import mask_alignment_diversity
from mim_plugins.masking import DPPMasking, PatchMask, greedy_map, patch_kernel
from mim_plugins.masking.kernels import unit_features

TAUS = (1.0, 0.95, 0.85, 0.75, 0.5, 0.25, 0.1, 0.0)


def kernels() -> None:
    """Shared visible patches and log-determinants between kernels, tau = 0 and 0.25."""
    images = photo_batch(60)
    small = unit_features(images, (14, 14), "pooled")
    full = unit_features(images, (14, 14), "pixels")
    candidates = {
        "RBF on pixels": patch_kernel(full),
        "RBF on pixels, bandwidth 4": patch_kernel(full, bandwidth=4.0),
        "RBF on pooled pixels (default)": patch_kernel(small),
        "cosine on pixels": patch_kernel(full, "cosine"),
        "cosine on pixels less their mean": patch_kernel(full - full.mean(1, True), "cosine"),
    }
    reference = candidates["RBF on pixels"].double()
    rows = torch.arange(len(images))[:, None, None]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(images), 196, generator=generator)

    def log_det(ids: torch.Tensor) -> torch.Tensor:
        chosen = reference[rows, ids[:, :, None], ids[:, None]] + 1e-6 * torch.eye(49)
        return torch.logdet(chosen).mean()

    def shared(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a[:, :, None] == b[:, None]).any(dim=2).float().mean().item()

    random = noise.argsort(dim=1)[:, :49]
    print("| kernel | shared at tau 0 | log-det at tau 0 | shared at 0.5 | log-det at 0.5 |")
    print("|---|---|---|---|---|")
    for name, L in candidates.items():
        cells = []
        for tau in (0.0, 0.5):
            best = greedy_map(reference, 49, tau, noise=noise)
            ids = greedy_map(L, 49, tau, noise=noise)
            cells.append(f"{shared(ids, best):.2f} | {log_det(ids):.0f}")
        print(f"| {name} | {' | '.join(cells)} |")
    best = greedy_map(reference, 49, 0.0, noise=noise)
    print(f"| random masks | {shared(random, best):.2f} | {log_det(random):.0f} | - | - |")


def masks(out: Path) -> None:
    """Photographs under random, greedy and exact DPP masks."""
    import matplotlib.pyplot as plt

    images = photo_batch(15)[[0, 3, 4, 7, 13]]
    columns = {"image": None} | {
        f"DPP, tau = {tau:g}" if tau < 1 else "random (tau = 1)": DPPMasking(tau=tau)
        for tau in (1.0, 0.5, 0.25, 0.0)
    }
    columns["DPP, exact sample"] = DPPMasking(method="exact")
    figure, axes = plt.subplots(
        len(images), len(columns), figsize=(1.7 * len(columns), 1.75 * len(images)),
        layout="constrained",
    )  # fmt: skip
    for column, (title, masking) in enumerate(columns.items()):
        shown = images
        if masking is not None:
            torch.manual_seed(0)
            mask = masking(images).mask.view(-1, 1, 14, 14).float()
            mask = mask.repeat_interleave(16, 2).repeat_interleave(16, 3)
            shown = images * (1 - mask) + 0.82 * mask
        axes[0, column].set_title(title, fontsize=9)
        for row, image in enumerate(shown):
            axes[row, column].imshow(image.permute(1, 2, 0).numpy())
            axes[row, column].axis("off")
    figure.savefig(out / "dpp_masks.png", dpi=90)


def alignment(out: Path, demo: Path, seed: int) -> None:
    """Figure 7 of the paper with both of the demo's backbones."""
    import matplotlib.pyplot as plt

    from mim_plugins._configs import config_folder
    from mim_plugins.demo import MASKINGS, PRETRAIN, load_images, load_model

    env = json.loads((demo / "results.json").read_text())["settings"]
    size, patch = int(env["DEMO_IMAGE_SIZE"]), int(env["DEMO_PATCH_SIZE"])
    paths = [path for path in sorted((Path(env["DEMO_DATA"]) / "test").rglob("*")) if path.suffix]
    images = load_images(paths[:: max(1, len(paths) // 480)], size)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    print("| backbone trained with | tau | distance to unmasked | distance of two masks |")
    print("|---|---|---|---|")
    for name in MASKINGS:
        checkpoint = demo / f"{name}_seed{seed}" / f"epoch_{env['DEMO_EPOCHS']}.pth"
        model = load_model(config_folder() / "demo" / PRETRAIN.format(name), checkpoint, env)
        inputs = (images - model.data_preprocessor.mean) / model.data_preprocessor.std

        def encode(x: torch.Tensor, mask: PatchMask | None, model: Any = model) -> torch.Tensor:
            return model.backbone(x, mask=mask)[0][:, 0]

        results = []
        for tau in TAUS:
            generator = torch.Generator().manual_seed(0)
            masking = DPPMasking(patch_size=patch, tau=tau)
            results.append(mask_alignment_diversity(encode, inputs, masking, 5, generator))
            means = [f"{values.mean():.3f}" for values in results[-1]]
            print(f"| {name} masks | {tau:g} | {' | '.join(means)} |")
        for axis, field in zip(axes, ("alignment", "diversity"), strict=True):
            # Relative to random masks: the two backbones have features of different size.
            values = torch.stack([getattr(result, field) for result in results])
            values = values / values[0].mean()
            error = 1.96 * values.std(dim=1) / values.shape[1] ** 0.5
            axis.errorbar(
                range(len(TAUS)), values.mean(dim=1), yerr=error, marker="o", capsize=3, label=name
            )
    axes[0].set_title("distance of masked to unmasked [CLS] (alignment)", fontsize=9)
    axes[1].set_title("distance between two masks' [CLS] (diversity)", fontsize=9)
    for axis in axes:
        axis.set_xticks(range(len(TAUS)), [f"{tau:g}" for tau in TAUS])
        axis.set_xlabel("tau")
        axis.set_ylabel("relative to tau = 1 (random)")
        axis.grid(alpha=0.3)
    axes[1].legend(title="backbone trained with masks", fontsize=8, title_fontsize=8)
    figure.savefig(out / "dpp_alignment.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["kernels", "masks", "alignment"])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--demo", type=Path, default=Path("demo_output"))
    parser.add_argument("--seed", type=int, default=0, help="of the demo's backbone")
    args = parser.parse_args()
    if args.what == "kernels":
        kernels()
    elif args.what == "masks":
        masks(args.out)
    else:
        alignment(args.out, args.demo, args.seed)


if __name__ == "__main__":
    main()
