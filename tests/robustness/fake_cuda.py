"""A training step on a CUDA that is not there: device mismatches and host synchronisations.

Tensors are FakeTensors that say they are on ``cuda:0``: nothing is computed, but every operator
checks its devices as on a GPU. A mode on top notes what would make the host wait for the device
(``.item()``, ``nonzero``, blocking copies, the check of an eigendecomposition) and answers for
values that are not there. The backward pass is left out, which asks a driver for its streams.
"""

from __future__ import annotations

import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from mim_plugins.masking import _triton

from .case import Builder, Case
from .training import BATCH

# Autograd counts devices, and starts a thread for each, at its first backward pass: before fake
# tensors make it see one, else no later test of this process could fork.
torch.zeros(1, requires_grad=True).sum().backward()

# Their results, or their shapes, are looked at on the host.
CHECKED = ("linalg_eigh", "_linalg_eigh", "linalg_cholesky_ex", "_linalg_svd", "linalg_inv_ex")
DYNAMIC = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
FEW = 7  # elements that are true in a mask, where all of them do not fit


def on_cuda(x: Any) -> bool:
    return isinstance(x, FakeTensor) and x.fake_device.type == "cuda"


class Watch(TorchDispatchMode):
    """Counts what would make the host wait: ``syncs[what, where]``."""

    def __init__(self, true: int | None = None) -> None:
        super().__init__()
        self.syncs: Counter[tuple[str, str]] = Counter()
        self.true = true  # elements taken to be true in every mask; None: all of them

    def note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
        frames = [f for f in frames if f.filename != __file__]
        own = [f for f in frames if "/mim_plugins/" in f.filename]
        last = (own or frames)[-1]
        self.syncs[what, f"{'/'.join(last.filename.split('/')[-3:])}:{last.lineno}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        cuda = any(map(on_cuda, tree_leaves((args, kwargs))))
        if name == "_local_scalar_dense":
            return self.value(func, args[0])
        if cuda and (name in DYNAMIC or name in CHECKED or name == "equal"):
            self.note(name)
        if cuda and name == "nonzero":
            return args[0].new_zeros(self.true or args[0].numel(), args[0].ndim, dtype=torch.long)
        if cuda and name == "masked_select":
            return args[0].flatten()[: self.true]
        if cuda and name == "equal":
            return True
        if cuda and name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if masks:
                self.note("boolean index")
                put = name != "index"
                return args[0] if put else args[0].flatten(0, masks[0].ndim - 1)[: self.true]
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], out)
            lazy = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if on_cuda(source) != on_cuda(target) and not (lazy and on_cuda(target)):
                self.note("copy to the host" if on_cuda(source) else "copy to the device")
        return out

    def value(self, func: Any, x: Tensor) -> Any:
        if on_cuda(x):
            self.note("value read")
        try:
            return func(x)
        except Exception:  # a FakeTensor has none
            return False if x.dtype == torch.bool else 1.0 if x.dtype.is_floating_point else 1


def to_fake_cuda(module: nn.Module, mode: FakeTensorMode) -> None:
    """Move what ``module.cuda()`` moves, parameters and buffers, and nothing else."""
    moved: dict[int, Tensor] = {}

    def move(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in moved:
            with mode:
                new = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
                )
                if isinstance(tensor, nn.Parameter):
                    new = nn.Parameter(new, tensor.requires_grad)
            moved[id(tensor)] = new
        return moved[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                tensors[name] = move(tensor)
        if "_device" in vars(part):  # mmengine's preprocessors and Lightning modules are told
            part._device = torch.device("cuda", 0)


def faked(batch: Any, mode: FakeTensorMode, device: str) -> Any:
    def one(x: Any) -> Any:
        if isinstance(x, Tensor):
            with mode:
                return torch.empty(x.shape, dtype=x.dtype, device=device)
        if hasattr(x, "all_keys"):  # a DataSample
            for key in x.keys():  # noqa: SIM118
                if isinstance(getattr(x, key), Tensor):
                    x.set_field(one(getattr(x, key)), key)
        return x

    return tree_map(one, batch)


@contextmanager
def without_driver(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """No backward pass, and no launch of a Triton kernel, which needs pointers."""
    with patch.context() as m:
        m.setattr(_triton, "_failed", False)
        m.setattr(_triton, "launch", lambda *args: True)
        m.setattr(
            torch.autograd, "grad", lambda out, inputs, **k: tuple(map(torch.ones_like, inputs))
        )
        m.setattr(Tensor, "backward", lambda self, *args, **kwargs: None)
        yield


def step_mmpretrain(model: Any) -> Callable[[Any], None]:
    from mmengine.logging import MessageHub
    from mmengine.optim import OptimWrapper

    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    hub = MessageHub.get_instance("fake_cuda")

    def step(batch: Any) -> None:
        for name, value in model.train_step(batch, optimizer).items():
            hub.update_scalar(f"train/{name}", value)  # as upstream's RuntimeInfoHook

    return step


def step_lightly(model: Any) -> Callable[[Any], None]:
    model.log = model.log_dict = lambda *args, **kwargs: None
    model._trainer = types.SimpleNamespace(
        estimated_stepping_batches=100, global_step=1, current_epoch=0, max_epochs=10,
        max_steps=100, world_size=1, precision="32", training=True, barebones=False,
        fit_loop=types.SimpleNamespace(),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(batch: Any) -> None:
        out = model.training_step(batch, 0)
        optimizer.zero_grad()
        (out["loss"] if isinstance(out, dict) else out).backward()
        optimizer.step()

    return step


def syncs(
    case: Case, builder: Builder, patch: pytest.MonkeyPatch, true: int | None = None
) -> Counter[tuple[str, str]]:
    """Host synchronisations of the second training step; the first may fill caches."""
    setup = builder()
    mode, watch = FakeTensorMode(allow_non_fake_inputs=True), Watch(true)
    to_fake_cuda(setup.model.train(), mode)
    samples = [setup.dataset[i] for i in range(BATCH)]
    if case.framework == "mmpretrain":
        from mmengine.dataset import default_collate as collate

        batch, start = faked(collate(samples), mode, "cpu"), step_mmpretrain
    else:
        batch, start = faked(default_collate(samples), mode, "cuda"), step_lightly
    with without_driver(patch), mode:
        step = start(setup.model)
        with Watch(true):
            step(batch)
        with watch:
            step(batch)
    return watch.syncs
