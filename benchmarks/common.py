"""What the benchmarks share: real images, timing in turn, the machine's name."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mim_plugins.apps.photos import PHOTOS, photo_crops


def photo_batch(batch: int, size: int = 224) -> torch.Tensor:
    """``(batch, 3, size, size)`` float32 in [0, 1], crops of the embedded photographs."""
    rng = np.random.default_rng(0)
    each = -(-batch // len(PHOTOS))
    crops = [np.asarray(c) for name in PHOTOS for c in photo_crops(name, each, size, True, rng)]
    return torch.from_numpy(np.stack(crops)[:batch]).permute(0, 3, 1, 2).contiguous().float() / 255


def times(
    functions: dict[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: float = 0.0,
) -> dict[str, float]:
    """Median seconds per call, the functions taking turns so that noise hits all alike.

    ``warm``: every timed call follows so many seconds of untimed ones, so that what lasts a
    millisecond finds a processor that is awake and its own data in the caches.
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            time.sleep(0.2)  # idle threads of the last one's library stop spinning
            start = time.perf_counter()
            while time.perf_counter() - start < warm:
                function()
            start = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:  # the first call compiles and warms up
                taken[name].append(clock() - start)
    return {name: float(np.median(values)) for name, values in taken.items()}


def machine() -> str:
    """Processor, GPU and torch version in one line."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor}, {torch.get_num_threads()} threads; {gpu}; torch {torch.__version__}"
