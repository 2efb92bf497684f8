"""What breaks in today's upstream when its own tools run, and how it is mended from outside.

Each remedy is applied when the adapter is imported, only where its fault is really found,
and can be switched off by name: ``MIM_PLUGINS_NO_REMEDIES=adjust_hue,amp_on_cpu`` or
``=all``. Nothing here is needed by the plugins themselves.
"""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
from collections.abc import Callable
from functools import partial, wraps
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.utils import ext_loader
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import FUNCTIONS, OPTIM_WRAPPERS
from mmengine.runner import CheckpointLoader, Runner
from mmengine.utils import package_utils
from mmengine.utils.dl_utils import misc

from .safe_load import mmengine_checkpoints

SWITCH = "MIM_PLUGINS_NO_REMEDIES"


class Remedy:
    """One fault of upstream: what it is, whether it is there, how it is mended."""

    name: str
    description: str
    state = ""  # once applied: "active", "not needed", "switched off" or "broken"
    mend: Callable[[], None] | None = None  # it cannot be mended from here

    def is_broken(self) -> bool:
        raise NotImplementedError


def _fails(error: type[Exception], function: Callable, *args: Any, **kwargs: Any) -> bool:
    try:
        function(*args, **kwargs)
    except error:
        return True
    return False


class PkgResources(Remedy):  # read before any plugin is imported, so it can only be reported
    name = "pkg_resources"
    description = "'mmpretrain::' bases need pkg_resources: pip install 'setuptools<82'"

    def is_broken(self) -> bool:
        needed = "pkg_resources" in inspect.getsource(package_utils)
        return needed and find_spec("pkg_resources") is None


class FindLoader(Remedy):
    name = "find_loader"
    description = "mmengine's Runner asks pkgutil.find_loader, which Python 3.14 has no more"

    def is_broken(self) -> bool:
        ask = (misc.mmcv_full_available, ext_loader.check_ops_exist)
        return any(_fails(AttributeError, function) for function in ask)

    def mend(self) -> None:
        # All that the two modules take from pkgutil; they only ask whether it is None.
        misc.pkgutil = ext_loader.pkgutil = SimpleNamespace(find_loader=find_spec)


def _collate_with_scope(batch: Any, _collate: Callable, _scope_: str = "", **kwargs: Any) -> Any:
    return _collate(batch, **kwargs)


class CollateScope(Remedy):
    name = "collate_scope"
    description = "'mmpretrain::' bases pass _scope_ to collate functions, which reject it"

    def is_broken(self) -> bool:
        collate = FUNCTIONS.get("default_collate")
        rejects = "_scope_" not in inspect.signature(collate).parameters
        return rejects and "_scope_" not in inspect.getsource(Runner.build_dataloader)

    def mend(self) -> None:
        for name in ("default_collate", "pseudo_collate"):
            collate = partial(_collate_with_scope, _collate=FUNCTIONS.get(name))
            FUNCTIONS.register_module(name=name, module=collate, force=True)


class SafeLoad(Remedy):
    name = "safe_load"
    description = "mmengine cannot load its own checkpoints (--resume, tools/test.py, Pretrained)"

    def is_broken(self) -> bool:
        with TemporaryDirectory() as folder:
            path = os.path.join(folder, "history.pth")
            torch.save(HistoryBuffer([1.0], [1]), path)
            return _fails(Exception, CheckpointLoader.load_checkpoint, path, "cpu", logger="silent")

    def mend(self) -> None:
        stock_getstate = HistoryBuffer.__getstate__
        stock_load = CheckpointLoader.load_checkpoint

        def __getstate__(self: HistoryBuffer) -> dict:
            # The methods are those of the class; pickled, each is a getattr on load.
            return {**stock_getstate(self), "statistics_methods": {}}

        @wraps(stock_load)
        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            with mmengine_checkpoints():
                return stock_load(*args, **kwargs)

        HistoryBuffer.__getstate__ = __getstate__
        CheckpointLoader.load_checkpoint = staticmethod(load_checkpoint)


class _CyclicHue(float):
    """A hue factor whose product with 255 is an integer modulo 256, as uint8 hue is."""

    def __mul__(self, other: float) -> int:
        return int(float(self) * other) % 256


class AdjustHue(Remedy):
    name = "adjust_hue"
    description = (
        "mmcv.adjust_hue overflows on numpy 2 (ColorJitter of MoCo, BYOL, SimCLR, SimSiam)"
    )

    def is_broken(self) -> bool:
        black = np.zeros((1, 1, 3), np.uint8)
        return _fails(OverflowError, mmcv.adjust_hue, black, -0.1, backend="pillow")

    def mend(self) -> None:
        stock = mmcv.adjust_hue

        @wraps(stock)
        def adjust_hue(img: np.ndarray, hue_factor: float, *args: Any, **kwargs: Any) -> np.ndarray:
            return stock(img, _CyclicHue(hue_factor), *args, **kwargs)

        mmcv.adjust_hue = mmcv.image.adjust_hue = mmcv.image.photometric.adjust_hue = adjust_hue


def _float32_optim_wrapper(
    loss_scale: object = None, dtype: object = None, use_fsdp: bool = False, **kwargs: Any
) -> OptimWrapper:
    print_log(
        "No accelerator: AmpOptimWrapper is replaced by OptimWrapper, training in float32.",
        logger="current",
        level=logging.WARNING,
    )
    return OptimWrapper(**kwargs)


class AmpOnCpu(Remedy):
    name = "amp_on_cpu"
    description = "AmpOptimWrapper refuses to run without an accelerator: float32 instead"

    def is_broken(self) -> bool:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return _fails(AssertionError, AmpOptimWrapper, optimizer=optimizer)

    def mend(self) -> None:
        OPTIM_WRAPPERS.register_module(
            name="AmpOptimWrapper", module=_float32_optim_wrapper, force=True
        )


REMEDIES = (PkgResources(), FindLoader(), CollateScope(), SafeLoad(), AdjustHue(), AmpOnCpu())


def apply() -> None:
    """Apply every remedy that is needed and not switched off; once, at import."""
    if all(remedy.state for remedy in REMEDIES):
        return
    off = {name.strip() for name in os.environ.get(SWITCH, "").split(",")}
    unknown = off - {remedy.name for remedy in REMEDIES} - {"", "all"}
    if unknown:
        names = ", ".join(remedy.name for remedy in REMEDIES)
        raise ValueError(f"{SWITCH} may name 'all' or {names}; got {', '.join(sorted(unknown))}")
    for remedy in REMEDIES:
        if not remedy.is_broken():
            remedy.state = "not needed"
        elif remedy.name in off or "all" in off:
            remedy.state = "switched off"
        elif remedy.mend is None:
            remedy.state = "broken"
        else:
            remedy.mend()
            remedy.state = "active"
    active = [remedy.name for remedy in REMEDIES if remedy.state == "active"]
    # Data-loader workers and other ranks import this too: one line is enough.
    first = multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0"
    if active and first:
        print_log(
            f"mim_plugins mends upstream: {', '.join(active)} (see python -m mim_plugins; "
            f"{SWITCH} switches off)",
            logger="current",
        )


def status() -> tuple[Remedy, ...]:
    """What was found and done: the remedies, each with its ``state``."""
    return REMEDIES
