"""What DPP masks look like and do: the tables and pictures of docs/dppmask.md.

python benchmarks/dpp_evidence.py kernels             # agreement of kernels and features
python benchmarks/dpp_evidence.py masks               # docs/images/dpp_masks.png

# trains the backbones of docs/images/dpp_alignment.png, then draws it
python benchmarks/cifar.py dppmask --data CIFAR10 --out evidence/dppmask --seeds 0 1
python benchmarks/dpp_evidence.py alignment --data CIFAR10 --runs evidence/dppmask
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import photo_batch
from tqdm import tqdm

from mim_plugins.analysis import mask_alignment_diversity
from mim_plugins.masking import DPPMasking, PatchMask, greedy_map, patch_kernel
from mim_plugins.masking.kernels import unit_features

TAUS = (1.0, 0.95, 0.85, 0.75, 0.5, 0.25, 0.1, 0.0)
FROZEN = Path("random_ratio_0.75_seed1", "epoch_6.pth")  # whose tokens kernels compare
DISTANCES = {"alignment": "masked to unmasked [CLS]", "diversity": "between two masks' [CLS]"}


def kernels(runs: Path) -> None:
    """Shared visible patches and log-determinants between kernels, tau = 0 and 0.5.

    The second table, with the patch tokens of a backbone trained on 32 px images, is
    printed where there is one.
    """
    images = photo_batch(60)
    small = unit_features(images, (14, 14), "pooled")
    full = unit_features(images, (14, 14), "pixels")
    agreement(
        {
            "RBF on pixels": patch_kernel(full),
            "RBF on pixels, bandwidth 4": patch_kernel(full, bandwidth=4.0),
            "RBF on pooled pixels (default)": patch_kernel(small),
            "cosine on pixels": patch_kernel(full, "cosine"),
            "cosine on pixels less their mean": patch_kernel(full - full.mean(1, True), "cosine"),
        }
    )
    checkpoint = runs / FROZEN
    if not checkpoint.exists():
        print(f"\nPatch tokens: no {checkpoint}")
        return
    from cifar import load_model

    model = load_model(checkpoint)
    images = photo_batch(60, 32)
    pixels = unit_features(images, (8, 8), "pixels")
    inputs = (images * 255 - model.data_preprocessor.mean) / model.data_preprocessor.std
    tokens = patch_tokens(model)(inputs)
    print("\n32 px, patches of 4 px")
    agreement(
        {
            "RBF on pixels": patch_kernel(pixels),
            "cosine on pixels": patch_kernel(pixels, "cosine"),
            "RBF on patch tokens": patch_kernel(tokens),
            "cosine on patch tokens": patch_kernel(tokens, "cosine"),
        }
    )


def patch_tokens(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Last-layer tokens ``(B, N, D)`` of the patches of unmasked images."""

    @torch.no_grad()
    def tokens(images: torch.Tensor) -> torch.Tensor:
        return model.backbone(images, mask=None)[0][:, 1:]

    return tokens


def agreement(candidates: dict[str, torch.Tensor]) -> None:
    """Compare kernels ``(B, N, N)``; the first is the reference. A quarter is visible."""
    reference = next(iter(candidates.values())).double()
    batch, num = reference.shape[:2]
    kept = num // 4
    rows = torch.arange(batch)[:, None, None]
    noise = torch.rand(batch, num, generator=torch.Generator().manual_seed(0))

    def log_det(ids: torch.Tensor) -> torch.Tensor:
        chosen = reference[rows, ids[:, :, None], ids[:, None]] + 1e-6 * torch.eye(kept)
        return torch.logdet(chosen).mean()

    def shared(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a[:, :, None] == b[:, None]).any(dim=2).float().mean().item()

    print("| kernel | shared at tau 0 | log-det at tau 0 | shared at 0.5 | log-det at 0.5 |")
    print("|---|---|---|---|---|")
    for name, L in candidates.items():
        cells = []
        for tau in (0.0, 0.5):
            best = greedy_map(reference, kept, tau, noise=noise)
            ids = greedy_map(L, kept, tau, noise=noise)
            cells.append(f"{shared(ids, best):.2f} | {log_det(ids):.0f}")
        print(f"| {name} | {' | '.join(cells)} |")
    random = noise.argsort(dim=1)[:, :kept]
    best = greedy_map(reference, kept, 0.0, noise=noise)
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


def alignment(out: Path, runs: Path, data: Path) -> None:
    """Figure 7 of the paper: two backbones, kernels on pixels and on features.

    The features are another backbone's (the other seed's), so that no backbone is measured
    with its own.
    """
    import matplotlib.pyplot as plt
    from cifar import load_model, read_split

    images, _ = read_split(data / "test", 480)
    tokens = patch_tokens(load_model(runs / FROZEN))
    backbones = {"random masks": "random_ratio_0.75_seed0", "DPP masks": "DPP_ratio_0.75_seed0"}
    kernels = {"patch tokens": tokens, "pooled pixels": "pooled"}
    styles = product(zip(backbones, ("C0", "C1"), strict=True), zip(kernels, "-:", strict=True))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    print("| kernel on | backbone trained with | distance | " + " | ".join(map(str, TAUS)) + " |")
    print("|---" * (len(TAUS) + 3) + "|")
    for (name, colour), (kernel, line) in styles:
        model = load_model(runs / backbones[name] / "epoch_6.pth")
        inputs = (images - model.data_preprocessor.mean) / model.data_preprocessor.std

        def encode(x: torch.Tensor, mask: PatchMask | None, model: Any = model) -> torch.Tensor:
            return model.backbone(x, mask=mask)[0][:, 0]

        results = []
        for tau in tqdm(TAUS, desc=f"{kernel}, {name}", leave=False):
            generator = torch.Generator().manual_seed(0)
            masking = DPPMasking(patch_size=4, tau=tau, features=kernels[kernel])
            results.append(mask_alignment_diversity(encode, inputs, masking, 5, generator))
        for axis, field in zip(axes, ("alignment", "diversity"), strict=True):
            # Relative to random masks: the two backbones have features of different size.
            values = torch.stack([getattr(result, field) for result in results])
            values = values / values[0].mean()
            error = 1.96 * values.std(dim=1) / values.shape[1] ** 0.5
            means = values.mean(dim=1)
            label = f"{kernel}, {name}"
            axis.errorbar(
                range(len(TAUS)), means, yerr=error, marker="o", markersize=4, capsize=2,
                color=colour, linestyle=line, label=label,
            )  # fmt: skip
            cells = " | ".join(f"{mean:.3f}" for mean in means)
            print(f"| {kernel} | {name} | {DISTANCES[field]} | {cells} |")
    for axis, field in zip(axes, ("alignment", "diversity"), strict=True):
        axis.set_title(f"{DISTANCES[field]} ({field})", fontsize=9)
        axis.set_xticks(range(len(TAUS)), [f"{tau:g}" for tau in TAUS])
        axis.set_xlabel("tau")
        axis.set_ylabel("relative to tau = 1 (random)")
        axis.grid(alpha=0.3)
    axes[0].legend(title="kernel on, backbone trained with", fontsize=8, title_fontsize=8)
    figure.savefig(out / "dpp_alignment.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["kernels", "masks", "alignment"])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--runs", type=Path, default=Path("evidence/dppmask"))
    parser.add_argument("--data", type=Path, help="CIFAR-10 as {train,test}/<class>/<image>")
    args = parser.parse_args()
    print(f"torch {torch.__version__}")
    if args.what == "kernels":
        kernels(args.runs)
    elif args.what == "masks":
        masks(args.out)
    elif args.data is None:
        parser.error("alignment needs --data")
    else:
        alignment(args.out, args.runs, args.data)


if __name__ == "__main__":
    main()
