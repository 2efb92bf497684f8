"""Cost of a training step with MixMask, as a ratio to the stock step of the same run.

    python benchmarks/mixmask.py                # ResNet-18 on 32 px; with a GPU ResNet-50 on 224 px
    python benchmarks/mixmask.py --algorithms moco byol --batch 64

A query pass costs a forward and a backward, three times a forward; a key pass one forward. So
MoCo's step, a query and a key pass, takes 4, and each mixed copy of the queries 3 more: the
bound for one is 7/4. The goal is 1.05 times the bound.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from common import machine, photo_batch, times
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

import mim_plugins.mmpretrain  # noqa: F401
from mim_plugins._configs import config_folder

GPU_CONFIGS = {
    "moco": "mocov2-mixmask_resnet50_8xb32-coslr-200e_in1k",
    "byol": "byol-mixmask_resnet50_16xb256-coslr-200e_in1k",
    "simclr": "simclr-mixmask_resnet50_16xb256-coslr-200e_in1k",
    "simsiam": "simsiam-mixmask_resnet50_8xb32-coslr-200e_in1k",
}
# Passes per step: queries with gradient, keys without.
PASSES = {"moco": (1, 1), "byol": (2, 2), "simclr": (2, 0), "simsiam": (2, 0)}
MIXERS = {
    "stock": {},
    "stock again": {},  # what differs from 1 here is noise
    "mixing off": {},
    "MixMask": {"mixing": {"grid_size": 4}},
    "MixMask, concat_views": {"mixing": {"grid_size": 4}, "concat_views": True},
    "MixMask + Un-Mix": {"mixing": {"grid_size": 4}, "unmix": {}},
    "erase-based": {"mixing": {"type": "EraseMask", "grid_size": 4}},
}
COPIES = {"MixMask": 1, "MixMask, concat_views": 1, "MixMask + Un-Mix": 2, "erase-based": 2}


def bound(algorithm: str, name: str) -> float:
    """Passes of a variant relative to stock's, in forwards."""
    queries, keys = PASSES[algorithm]
    stock = 3 * queries + keys
    return (stock + 3 * queries * COPIES.get(name, 0)) / stock


def build(algorithm: str, name: str, device: str) -> torch.nn.Module:
    """The model of a shipped config; stock, or with other mixers."""
    small = f"{algorithm}-mixmask_resnet18_1xb512-*-1000e_cifar100"
    config = GPU_CONFIGS[algorithm] if device == "cuda" else small
    (path,) = (config_folder() / "mixmask").glob(f"{config}.py")
    model = Config.fromfile(path).model
    del model["mixing"]
    model.pop("symmetric", None)  # which stock has not
    if name.startswith("stock"):
        model["type"] = model["type"].removeprefix("MixMask")
    torch.manual_seed(0)
    return MODELS.build({**model, **MIXERS[name]}).to(device)


def step(model: torch.nn.Module, views: list[torch.Tensor], amp: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        with torch.autocast(views[0].device.type, torch.bfloat16, enabled=amp):
            losses = model.loss(list(views), None)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def memory(model: torch.nn.Module, views: list[torch.Tensor], amp: bool) -> int:
    """Bytes: peak on the GPU; on the CPU what autograd keeps for the backward."""
    if views[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        step(model, views, amp)()
        return torch.cuda.max_memory_allocated()
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = model.loss(list(views), None)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    del losses
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", choices=list(PASSES), default=list(PASSES))
    parser.add_argument("--batch", type=int, help="default: 32, with a GPU 256")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    amp, size = device == "cuda", 224 if device == "cuda" else 32
    batch = args.batch or (256 if device == "cuda" else 32)
    init_default_scope("mmpretrain")
    MessageHub.get_current_instance().update_info("max_iters", 10**6)
    images = photo_batch(2 * batch, size).to(device)
    images = (images - images.mean()) / images.std()
    views = list(images.chunk(2))
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}")
    print(f"batch {batch}, {size} px, {'bfloat16' if amp else 'float32'}")
    for algorithm in args.algorithms:
        steps, peak = {}, {}
        for name in MIXERS:
            model = build(algorithm, name, device)
            peak[name] = memory(model, views, amp)
            steps[name] = step(model, views, amp)
        # Without a GPU, processor time: it counts no other program of a shared machine.
        clock = time.perf_counter if device == "cuda" else time.process_time
        seconds = times(steps, args.repeats, clock)
        kept = "peak memory" if device == "cuda" else "kept for backward"
        print(f"\n{algorithm}\n\n| step | ms | ratio to stock | bound | ratio / bound | {kept} |")
        print("|---|---|---|---|---|---|")
        for name, value in seconds.items():
            ratio, arithmetic = value / seconds["stock"], bound(algorithm, name)
            print(
                f"| {name} | {value * 1e3:.0f} | {ratio:.3f} | {arithmetic:.3f} | "
                f"{ratio / arithmetic:.3f} | {peak[name] / peak['stock']:.2f}x |"
            )


if __name__ == "__main__":
    main()
