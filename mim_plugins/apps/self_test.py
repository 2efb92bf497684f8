"""``python -m mim_plugins self-test``: does it all work on this machine, and at what cost?

On every device: the masks' kernels against references, then one training step of every plugin
in every installed framework, finite and timed against the stock step of the same run. Tiny
models, under a minute; ratios of large models are smaller, see ``benchmarks/``.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._check import first_line
from ..masking import ComplementaryMasking, DPPMasking, RandomMasking, dpp, patch_kernel
from ..masking.dpp import SMALLEST_GAIN, greedy_map, sample_kdpp
from ..masking.kernels import unit_features
from ..mixing import MixMask
from ..regularizers import MutualInformationLoss, UniformityLoss
from . import command_parser

Build = Callable[["Size"], Any]  # a model


@dataclass(frozen=True)
class Size:
    """Of images and models; the defaults are those of the self-test."""

    image: int = 64
    patch: int = 8
    width: int = 64
    depth: int = 2
    heads: int = 2
    decoder_width: int = 32
    decoder_depth: int = 1
    resnet: int = 18
    resnet_width: int = 8
    queue: int = 64
    hidden: int = 64
    features: int = 32
    batch: int = 8

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


# -- kernels against references ------------------------------------------------------------


def _coarse(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Images ``(batch, 3, size, size)`` with structure, as photographs have."""
    fine = torch.rand(batch, 3, size, size, generator=generator)
    coarse = torch.rand(batch, 3, size // 8, size // 8, generator=generator)
    return 0.8 * coarse.repeat_interleave(8, 2).repeat_interleave(8, 3) + 0.2 * fine


def _similarity(device: torch.device) -> str:
    """Kernel matrices against the definition in float64, with TF32 allowed."""
    images = _coarse(2, 64, torch.Generator().manual_seed(0))
    features = unit_features(images, (8, 8))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        rbf, cosine = (
            patch_kernel(features.to(device), *arguments).cpu().double()
            for arguments in (("rbf", 0.7), ("cosine",))
        )
    finally:
        torch.set_float32_matmul_precision(before)
    x = features.double()
    squares = (x[:, :, None] - x[:, None]).square().sum(dim=3)
    unit = nn.functional.normalize(x, dim=2)
    worst = max(
        (rbf - torch.exp(-squares / (2 * 0.7**2))).abs().max().item(),
        (cosine - unit @ unit.mT).abs().max().item(),
    )
    _require(worst < 1e-5, f"largest error {worst:.1e}")
    return f"largest error {worst:.1e}"


def _greedy(device: torch.device) -> str:
    """Volumes of greedily chosen sets against those of the PyTorch path on the CPU."""
    generator = torch.Generator().manual_seed(0)
    images = _coarse(8, 112, generator)
    L = patch_kernel(unit_features(images, (14, 14)))
    noise = torch.rand(8, 196, generator=generator)
    chosen = greedy_map(L.to(device), 49, noise=noise.to(device)).cpu()
    reference = dpp._greedy_map_torch(L, 49, SMALLEST_GAIN, True, noise)
    _require(all(len(set(row)) == 49 for row in chosen.tolist()), "items chosen twice")
    found, expected = (
        torch.stack(
            [torch.logdet(one[row][:, row]) for one, row in zip(L.double(), rows, strict=True)]
        )
        for rows in (chosen, reference)
    )
    worst = (found - expected).abs().max().item()
    _require(worst < 0.1, f"log-determinants differ by {worst:.2g}")
    return f"{(chosen == reference).all(dim=1).sum()} of 8 equal, log det within {worst:.1e}"


def _exact(device: torch.device) -> str:
    """How often two similar items are drawn together, against the determinants."""
    L = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]], device=device)
    draws = sample_kdpp(L.expand(10000, -1, -1), 2, torch.Generator(device).manual_seed(0))
    together = (draws.sum(dim=1) == 1).double().mean().item()  # items 0 and 1
    expected = 0.19 / 2.19
    detail = f"together {together:.4f}, by the determinants {expected:.4f}"
    _require(abs(together - expected) < 5 * (expected * (1 - expected) / 10000) ** 0.5, detail)
    return detail


def _counts(device: torch.device) -> str:
    """Exact numbers of visible patches, and complementary masks that do not overlap."""
    images = _coarse(4, 112, torch.Generator().manual_seed(0)).to(device)
    sizes: dict[str, Any] = {"mask_ratio": 0.75, "patch_size": 8}
    for masking in (
        RandomMasking(**sizes),
        DPPMasking(**sizes),
        DPPMasking(method="exact", **sizes),
    ):
        _require(bool((masking(images).mask.sum(dim=1) == 147).all()), f"{masking}: wrong count")
    mask = ComplementaryMasking(4, base=DPPMasking(**sizes), **sizes)(images).mask
    _require(bool(((~mask).view(4, 4, 196).sum(dim=0) == 1).all()), "complementary masks overlap")
    return "147 of 196 removed, 4 complementary masks cover"


KERNELS = {
    "similarity": _similarity,
    "greedy DPP": _greedy,
    "exact k-DPP": _exact,
    "counts": _counts,
}


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise AssertionError(detail)


# -- training steps ------------------------------------------------------------------------


def _mmpretrain(recipe: str, **changes: Any) -> Any:
    """The model of one of mmpretrain's own configs, with changes."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    import mim_plugins.mmpretrain  # noqa: F401

    init_default_scope("mmpretrain")
    config = Config.fromstring(f"_base_ = 'mmpretrain::{recipe}.py'", ".py")
    config.merge_from_dict({"model": changes})
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def _mmpretrain_mae(size: Size, masking: dict | None = None, **algorithm: Any) -> Any:
    arch = dict(
        embed_dims=size.width, num_layers=size.depth, num_heads=size.heads,
        feedforward_channels=4 * size.width, _delete_=True,
    )  # fmt: skip
    masked = {} if masking is None else {"type": "MaskedMAEViT", "masking": masking}
    return _mmpretrain(
        "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k",
        backbone=dict(arch=arch, img_size=size.image, patch_size=size.patch, **masked),
        neck=dict(
            num_patches=size.patches, patch_size=size.patch, embed_dim=size.width,
            decoder_embed_dim=size.decoder_width, decoder_depth=size.decoder_depth,
            decoder_num_heads=size.decoder_width // 32,
        ),
        head=dict(patch_size=size.patch),
        **algorithm,
    )  # fmt: skip


def _mmpretrain_mi_mae(size: Size) -> Any:
    information = dict(hidden_dim=size.hidden, projection_dim=size.hidden // 2)
    masking = dict(type="ComplementaryMasking", num_masks=4)
    return _mmpretrain_mae(size, masking, type="MIMAE", information=information)


def _mmpretrain_moco(size: Size, **plugin: Any) -> Any:
    width, channels = size.resnet_width, size.resnet_width * (8 if size.resnet < 50 else 32)
    return _mmpretrain(
        "mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k",
        queue_len=size.queue,
        feat_dim=size.features,
        backbone=dict(depth=size.resnet, stem_channels=width, base_channels=width),
        neck=dict(in_channels=channels, hid_channels=size.hidden, out_channels=size.features),
        **plugin,
    )


def _lightly(name: str, size: Size, **plugins: Any) -> Any:
    from ..lightly import wrap
    from . import lightly_models

    model = getattr(lightly_models, name)(size)
    return wrap(model, **plugins) if plugins else model


def _lightly_mi_mae(size: Size) -> Any:
    hidden, out = size.hidden, size.hidden // 2
    information = MutualInformationLoss(size.width, hidden_dim=hidden, projection_dim=out)
    return _lightly("mae", size, masking=ComplementaryMasking(4), regularizers=[information])


# framework -> stock pipeline -> plugin -> model; "stock" first, the others are timed against it.
STEPS: dict[str, dict[str, dict[str, Build]]] = {
    "mmpretrain": {
        "MAE": {
            "stock": _mmpretrain_mae,
            "DPP greedy": partial(_mmpretrain_mae, masking=dict(type="DPPMasking")),
            "DPP exact": partial(_mmpretrain_mae, masking=dict(type="DPPMasking", method="exact")),
            "U-MAE": partial(_mmpretrain_mae, type="UMAE"),
            "MI-MAE (4 masks)": _mmpretrain_mi_mae,
        },
        "MoCo": {
            "stock": _mmpretrain_moco,
            "MixMask": partial(_mmpretrain_moco, type="MixMaskMoCo", mixing=dict(grid_size=4)),
        },
    },
    "lightly": {
        "MAE": {
            "stock": partial(_lightly, "mae"),
            "DPP greedy": partial(_lightly, "mae", masking=DPPMasking()),
            "DPP exact": partial(_lightly, "mae", masking=DPPMasking(method="exact")),
            "U-MAE": partial(_lightly, "mae", regularizers=[UniformityLoss()]),
            "MI-MAE (4 masks)": _lightly_mi_mae,
        },
        "SimSiam": {
            "stock": partial(_lightly, "SimSiam"),
            "MixMask": partial(_lightly, "SimSiam", mixing=MixMask(grid_size=4)),
        },
    },
}


def make_step(
    framework: str, model: Any, views: list[Tensor], amp: bool = False
) -> Callable[[], Tensor]:
    """One optimiser step on ``views``, as the framework calls its model; gives the loss.

    ``amp``: the forward pass in bfloat16 autocast.
    """
    device = views[0].device
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    siamese = hasattr(model, "queue")

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            if framework == "mmpretrain":
                losses = model.loss(list(views) if siamese else views[0], None)
                loss, _ = model.parse_losses(losses)
            else:
                labels = torch.zeros(len(views[0]), dtype=torch.long, device=device)
                loss = model.training_step((list(views), labels, [""] * len(labels)), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def time_in_turn(
    steps: dict[str, Callable[[], Tensor]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds per step after one that warms up, the steps taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


# -- the table -----------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the report; the result is ok or FAILED."""

    device: str
    part: str
    check: str
    result: str
    detail: str


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    return [
        torch.device("cpu"),
        *(torch.device("cuda", i) for i in range(torch.cuda.device_count())),
    ]


def check_kernels(device: torch.device) -> Iterator[Row]:
    for name, check in KERNELS.items():
        try:
            yield Row(str(device), "kernels", name, "ok", check(device))
        except Exception as error:  # whatever breaks is a row of the report
            yield Row(str(device), "kernels", name, "FAILED", first_line(error))


def check_steps(framework: str, device: torch.device) -> Iterator[Row]:
    size = Size()
    images = _coarse(2 * size.batch, size.image, torch.Generator().manual_seed(0))
    views = list(images.to(device).chunk(2))
    for pipeline, plugins in STEPS[framework].items():
        steps, failures = {}, {}
        for name, build in plugins.items():
            try:
                torch.manual_seed(0)
                step = make_step(framework, build(size), views)
                loss = float(step())
                _require(loss - loss == 0, f"loss {loss}")
                steps[name] = step
            except Exception as error:
                failures[name] = first_line(error)
        seconds = time_in_turn(steps, 5, device)
        for name in plugins:
            detail = failures.get(name) or f"{seconds[name] * 1e3:.1f} ms"
            if name in seconds and "stock" in seconds and name != "stock":
                detail += f", {seconds[name] / seconds['stock']:.2f} x stock"
            result = "FAILED" if name in failures else "ok"
            yield Row(str(device), framework, f"{pipeline}, {name}", result, detail)


def main(argv: list[str] | None = None) -> int:
    command_parser("self-test", __doc__).parse_args(argv)
    start = time.perf_counter()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(
        f"torch {torch.__version__}, Python {sys.version.split()[0]}; "
        f"{torch.get_num_threads()} threads; CUDA devices: {', '.join(gpus) or 'none'}\n"
    )
    failed = 0
    logging.disable(logging.INFO)  # mmengine lists every weight it initialises
    line = "{:<8} {:<11} {:<23} {:<7} {}"
    print(line.format("device", "part", "check", "", "result"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for device in devices():
            steps = (check_steps(framework, device) for framework in STEPS if find_spec(framework))
            for row in chain(check_kernels(device), *steps):
                failed += row.result == "FAILED"
                print(line.format(*row), flush=True)
    logging.disable(logging.NOTSET)
    for framework in STEPS:
        if not find_spec(framework):
            print(line.format("", framework, "not installed", "", ""))
    for warning in caught:
        if warning.category is RuntimeWarning and "GPU" in str(warning.message):
            print(f"warning: {warning.message}")
    seconds = time.perf_counter() - start
    print(f"\n{f'{failed} FAILED' if failed else 'all passed'}, {seconds:.0f} s")
    return int(failed > 0)
