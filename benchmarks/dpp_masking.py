"""Cost of DPP masks: against a plain numpy loop, the stock pipeline and the stock step.

    python benchmarks/dpp_masking.py            # tables; GPU rows where there is a GPU
    python benchmarks/dpp_masking.py --only step --thread-time
    python benchmarks/dpp_masking.py --plot docs/images/dpp_growth.png

Every figure is a ratio of two things timed in turn in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import machine, photo_batch, times
from threadpoolctl import threadpool_limits

from mim_plugins.masking import (
    DPPMasking,
    Masking,
    RandomMasking,
    dpp,
    greedy_map,
    patch_kernel,
    sample_kdpp,
    sample_kdpp_dual,
)
from mim_plugins.masking.kernels import unit_features, unit_vectors


def numpy_kernel(image: np.ndarray, patch: int = 16) -> np.ndarray:
    """RBF similarity of one image's patches, plain numpy, float64."""
    channels, height, width = image.shape
    rows, cols = height // patch, width // patch
    x = image.astype(np.float64).reshape(channels, rows, patch, cols, patch)
    x = x.transpose(1, 3, 0, 2, 4).reshape(rows * cols, -1)
    norms = (x**2).sum(axis=1)
    distances = np.maximum(norms[:, None] + norms[None] - 2 * x @ x.T, 0)
    median = np.median(distances[np.triu_indices(len(x), 1)])
    return np.exp(-distances / (2 * median))


def numpy_greedy(L: np.ndarray, k: int, first: int) -> np.ndarray:
    """Greedy MAP of one kernel, Eqs. 13-15 of DPPMask in numpy, all candidates at once."""
    gain = L.diagonal().copy()
    c = np.zeros((k, len(L)))
    chosen = np.empty(k, dtype=int)
    for t in range(k):
        j = first if t == 0 else int(gain.argmax())
        chosen[t] = j
        e = (L[j] - c[:t, j] @ c[:t]) / np.sqrt(max(gain[j], 1e-12))
        c[t] = e
        gain -= e**2
        gain[j] = -np.inf
    return chosen


def plain_greedy(L: list[list[float]], k: int, first: int) -> list[int]:
    """The same with a plain loop over the candidates, Python numbers."""
    num = len(L)
    gain = [L[i][i] for i in range(num)]
    c: list[list[float]] = [[] for _ in range(num)]
    chosen: list[int] = []
    rest = set(range(num))
    for t in range(k):
        j = first if t == 0 else max(rest, key=gain.__getitem__)
        chosen.append(j)
        rest.remove(j)
        root, row, c_j = max(gain[j], 1e-12) ** 0.5, L[j], c[j]
        for i in rest:
            e = (row[i] - sum(a * b for a, b in zip(c_j, c[i], strict=True))) / root
            c[i].append(e)
            gain[i] -= e * e
    return chosen


def cpu_masking(repeats: int, clock: Callable[[], float]) -> None:
    images = photo_batch(64)
    arrays = images.numpy()
    L = patch_kernel(unit_features(images, (14, 14)))
    L64 = L.double().numpy()
    noise = torch.rand(64, 196)
    greedy, pixels = "greedy stage", "pixels to mask"

    def numpy_pipeline() -> None:
        for image in arrays:
            numpy_greedy(numpy_kernel(image), 49, np.random.randint(196))  # noqa: NPY002

    def numpy_greedy_stage() -> None:
        for kernel in L64:
            numpy_greedy(kernel, 49, 0)

    def in_torch(images: torch.Tensor) -> None:
        masking = DPPMasking(tau=0.0)
        kernel = masking.similarity(images, (14, 14))
        dpp._greedy_map_torch(kernel, 49, 1e-12, True, noise)

    functions: dict[tuple[str, str], Callable[[], object]] = {
        (pixels, "numpy float64, a loop over images"): numpy_pipeline,
        (pixels, "`DPPMasking(tau=0)`"): lambda: DPPMasking(tau=0.0)(images),
        (pixels, "`DPPMasking(tau=0.5)`"): lambda: DPPMasking(tau=0.5)(images),
        (pixels, "`DPPMasking(tau=0, features='pixels')`"): lambda: DPPMasking(
            tau=0.0, features="pixels"
        )(images),
        (pixels, "`DPPMasking(tau=0)` without numba"): lambda: in_torch(images),
        (pixels, "`DPPMasking(method='exact')`"): lambda: DPPMasking(method="exact")(images),
        (pixels, "`RandomMasking()`"): lambda: RandomMasking()(images),
        (greedy, "numpy float64, a loop over images"): numpy_greedy_stage,
        (greedy, "`greedy_map`"): lambda: greedy_map(L, 49),
        (greedy, "`greedy_map` without numba"): lambda: dpp._greedy_map_torch(
            L, 49, 1e-12, True, noise
        ),
    }
    taken = times({" | ".join(name): f for name, f in functions.items()}, repeats, clock, 0.05)
    seconds = {name: taken[" | ".join(name)] / 64 for name in functions}
    kernels = L64[:2].tolist()
    plain = times({"plain": lambda: [plain_greedy(kernel, 49, 0) for kernel in kernels]}, 3, clock)
    seconds[greedy, "plain Python loop over patches"] = plain["plain"] / len(kernels)
    print("\nCPU, 64 photographs of 224 x 224, N=196, k=49\n")
    print("| stage | what | us / image | times faster than numpy |\n|---|---|---|---|")
    for (stage, name), value in seconds.items():
        reference = seconds[stage, "numpy float64, a loop over images"]
        print(f"| {stage} | {name} | {value * 1e6:.3g} | {reference / value:.2g} |")


def exact_forms(repeats: int, clock: Callable[[], float]) -> None:
    """Exact samples of the cosine kernel by its eigenvectors, and by those of the features."""
    x = unit_features(photo_batch(64), (14, 14))
    functions = {
        "`sample_kdpp(patch_kernel(x, 'cosine'), 40)`": lambda: sample_kdpp(
            patch_kernel(x, "cosine"), 40
        ),
        "`sample_kdpp_dual(unit_vectors(x), 40)`": lambda: sample_kdpp_dual(unit_vectors(x), 40),
    }
    seconds = times(functions, repeats, clock)
    print("\nExact samples, cosine kernel, 64 photographs of 224 x 224, N=196, D=48, k=40\n")
    print("| what | us / image | times faster |\n|---|---|---|")
    slowest = max(seconds.values())
    for name, value in seconds.items():
        print(f"| {name} | {value / 64 * 1e6:.3g} | {slowest / value:.2g} |")


def data_pipeline(repeats: int, clock: Callable[[], float]) -> None:
    """The stock SimMIM training pipeline on ImageNet-sized JPEGs with the mask exchanged."""
    try:
        from mmengine.registry import init_default_scope
        from mmpretrain.registry import TRANSFORMS

        import mim_plugins.mmpretrain  # noqa: F401
    except ImportError as error:
        print(f"\nData pipeline: not measured ({error})")
        return
    from PIL import Image

    from mim_plugins.apps.photos import PHOTOS, load_photo

    init_default_scope("mmpretrain")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a data-loader worker
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name in PHOTOS:
            path = Path(folder) / f"{name}.jpg"
            Image.fromarray(load_photo(name)).resize((500, 375)).save(path, quality=90)
            paths.append(str(path))
        steps = [
            {"type": "LoadImageFromFile"},
            {
                "type": "RandomResizedCrop",
                "scale": 192,
                "crop_ratio_range": (0.67, 1.0),
            },
            {"type": "RandomFlip", "prob": 0.5},
        ]

        def pipeline(generator: str) -> Callable[[], None]:
            mask = {"type": generator, "input_size": 192, "mask_patch_size": 32}
            mask |= {"model_patch_size": 4, "mask_ratio": 0.6}
            built = [TRANSFORMS.build(step) for step in [*steps, mask, {"type": "PackInputs"}]]

            def run() -> None:
                for path in paths:
                    results = {"img_path": path}
                    for transform in built:
                        results = transform(results)

            return run

        seconds = times(
            {name: pipeline(name) for name in ("SimMIMMaskGenerator", "DPPMaskGenerator")},
            5 * repeats,
            clock,
        )
    torch.set_num_threads(threads)
    stock, ours = seconds["SimMIMMaskGenerator"], seconds["DPPMaskGenerator"]
    print("\nStock SimMIM training pipeline, 500 x 375 JPEGs to 192 x 192, one thread\n")
    print("| mask generator | us / image | ratio to stock |\n|---|---|---|")
    print(f"| SimMIMMaskGenerator | {stock / len(paths) * 1e6:.0f} | 1 |")
    print(f"| DPPMaskGenerator | {ours / len(paths) * 1e6:.0f} | {ours / stock:.3f} |")


def growth(repeats: int, plot: str | None) -> None:
    """Cost against the number of patches, at mask ratio 0.75."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    numbers, rows = [49, 196, 784, 3136], []
    for num, batch in zip(numbers, (256, 64, 4, 2), strict=True):
        images = photo_batch(batch, 14 * round(num**0.5)).to(device)
        maskings = {
            "random": RandomMasking(patch_size=14),
            "greedy": DPPMasking(patch_size=14, tau=0.0),
            "exact": DPPMasking(patch_size=14, method="exact"),
        }
        functions = {name: partial(masking, images) for name, masking in maskings.items()}
        if num == 3136 and device == "cpu":
            del functions["exact"]  # minutes
        seconds = times(functions, repeats if num < 784 else 1)
        rows.append({name: value / batch * 1e3 for name, value in seconds.items()})
    print(f"\nGrowth with the number of patches ({device}), ms per image\n")
    print("| patches | random | greedy | exact |\n|---|---|---|---|")
    for num, row in zip(numbers, rows, strict=True):
        cells = [f"{row[m]:.3g}" if m in row else "-" for m in ("random", "greedy", "exact")]
        print(f"| {num} | {' | '.join(cells)} |")
    if plot is None:
        return
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for method, marker in (("exact", "s"), ("greedy", "o"), ("random", "^")):
        points = [(n, row[method]) for n, row in zip(numbers, rows, strict=True) if method in row]
        axes.loglog(*zip(*points, strict=True), marker=marker, label=method)
    axes.set(xlabel="patches per image", ylabel="milliseconds per image", xticks=numbers)
    axes.set_xticklabels(numbers)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(title=f"masking ({device})")
    figure.savefig(plot, dpi=120)


def training_step(repeats: int, batch: int, clock: Callable[[], float]) -> None:
    """One optimiser step of MAE with different masks: ViT-B/16 in bf16, or a small one here."""
    try:
        from mmengine.registry import init_default_scope
        from mmpretrain.registry import MODELS

        from mim_plugins.mmpretrain.encoders import with_encoder
    except ImportError as error:
        print(f"\nTraining step: not measured ({error})")
        return
    init_default_scope("mmpretrain")
    gpu = torch.cuda.is_available()
    if gpu:
        arch, dims, size, patch, decoder = "b", 768, 224, 16, {}
        what = f"MAE ViT-B/16 training step, 224 px, bf16, batch {batch}"
    else:
        batch, dims, size, patch = min(batch, 128), 128, 32, 4
        arch = {"embed_dims": dims, "num_layers": 4, "num_heads": 4, "feedforward_channels": 512}
        decoder = {"decoder_embed_dim": 64, "decoder_depth": 2, "decoder_num_heads": 4}
        what = f"MAE training step, ViT of 4 layers and width 128, 32 px, patch 4, batch {batch}"
    images = photo_batch(batch, size)
    model = MODELS.build(
        {
            "type": "MAE",
            "backbone": {
                "type": "MaskedMAEViT", "arch": arch, "img_size": size, "patch_size": patch,
            },
            "neck": {
                "type": "MAEPretrainDecoder", "patch_size": patch, "embed_dim": dims,
                "num_patches": (size // patch) ** 2, **decoder,
            },
            "head": {
                "type": "MAEPretrainHead",
                "norm_pix": True,
                "patch_size": patch,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L2"},
            },
        }
    )  # fmt: skip
    if gpu:
        images, model = images.cuda(), model.cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    peak = {}

    def step(name: str, masking: Masking) -> Callable[[], None]:
        masking = with_encoder(masking, model.backbone)

        def run() -> None:
            model.backbone.masking = masking
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=gpu):
                loss = model.loss(images, None)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if gpu:
                peak[name] = torch.cuda.max_memory_allocated()

        return run

    maskings = {
        "random": RandomMasking(),
        "greedy": DPPMasking(tau=0.0),
        "greedy, features='pixels'": DPPMasking(tau=0.0, features="pixels"),
        "greedy, features='encoder'": DPPMasking(tau=0.0, features="encoder"),
        "exact": DPPMasking(method="exact"),
    }
    functions = {name: step(name, masking) for name, masking in maskings.items()}
    seconds = times(functions, repeats, time.perf_counter if gpu else clock)
    print(f"\n{what}\n")
    print("| masking | ms / step | ratio to random | peak memory ratio |\n|---|---|---|---|")
    for name, value in seconds.items():
        ratio = value / seconds["random"]
        memory = f"{peak[name] / peak['random']:.3f}" if gpu else "-"
        print(f"| {name} | {value * 1e3:.1f} | {ratio:.3f} | {memory} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--batch", type=int, default=256, help="of the training step, at most 128 on a CPU"
    )
    parser.add_argument("--plot", help="where to save the growth plot")
    parser.add_argument(
        "--thread-time",
        action="store_true",
        help="CPU tables in processor time of one thread, for a machine with other work",
    )
    parser.add_argument("--only", choices=["dual", "step"], help="the dual form or the step")
    args = parser.parse_args()
    print(machine())
    clock = time.perf_counter
    if args.thread_time:
        torch.set_num_threads(1)
        threadpool_limits(1)  # numpy's BLAS
        clock = time.thread_time
    if args.only is None:
        cpu_masking(args.repeats, clock)
    if args.only != "step":
        exact_forms(args.repeats, clock)
    if args.only == "dual":
        return
    if args.only is None:
        data_pipeline(args.repeats, clock)
        growth(args.repeats, args.plot)
    training_step(args.repeats, args.batch, clock)


if __name__ == "__main__":
    main()
