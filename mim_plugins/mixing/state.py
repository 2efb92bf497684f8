"""What modules hold beside parameters, put back after a call that must have no effect."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, Dataset

# What torch keeps in every module, but for the buffers, which are state.
OF_TORCH = frozenset(vars(nn.Module())) - {"_buffers"}
ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device))
# Code and data: large, or not copied by copy.deepcopy either, and no state of a step.
OUTSIDE = (
    type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
    partial, Dataset, DataLoader,
)  # fmt: skip


class State:
    """Buffers and attributes of an object as they are when this is made.

    Of a module, also those of all modules in it. Attributes are copied with all they hold
    (``copy.deepcopy``): counters, tensors, lists, a metric's sums, random generators, objects
    of the user's. Parameters are not state, nor is what lies in files, loggers and closures.

    Args:
        holder: The object: a module, or anything with attributes.
        without: Modules left out.
        names: Further attributes left out, wherever they are.
        shared: Objects that copies refer to as well.

    Raises:
        RuntimeError: If an attribute is an iterator that cannot be copied: to use it is to
            change it.
    """

    def __init__(
        self,
        holder: Any,
        *,
        without: Container[nn.Module] = (),
        names: Iterable[str] = (),
        shared: Iterable[object] = (),
    ) -> None:
        modules = list(holder.modules()) if isinstance(holder, nn.Module) else [holder]
        # What torch.compile wraps a module in has no state of its own.
        self.holders = [
            each
            for each in modules
            if each not in without
            and hasattr(each, "__dict__")
            and "_orig_mod" not in vars(each).get("_modules", ())
            and not isinstance(each, OUTSIDE)
        ]
        self.names = OF_TORCH.union(names)
        parameters = (m._parameters.values() for m in modules if isinstance(m, nn.Module))
        self.shared = [*modules, *chain(*parameters), *shared]
        self.values = self._copy([self._own(holder) for holder in self.holders])

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within, everything is as when this was made; after, as it was on entry.

        The objects of before are put back themselves: nothing is written into a tensor.
        """
        now = [self._own(holder) for holder in self.holders]
        self._put(self._copy(self.values))
        try:
            yield
        finally:
            self._put(now)

    def _own(self, holder: Any) -> dict[str, Any]:
        return {key: value for key, value in vars(holder).items() if key not in self.names}

    def _put(self, contents: list[dict[str, Any]]) -> None:
        for holder, values in zip(self.holders, contents, strict=True):
            attributes = vars(holder)
            for key in attributes.keys() - self.names - values.keys():
                del attributes[key]
            attributes.update(values)

    def _copy(self, contents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        memo = {id(item): item for item in self.shared}
        with _Clone():
            return [
                {
                    key: value
                    if _is_constant(value)
                    else _copied(value, memo, f"{type(holder).__name__}.{key}")
                    for key, value in values.items()
                }
                for holder, values in zip(self.holders, contents, strict=True)
            ]


class _Clone(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors that have a graph, which it refuses to."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.clone()
        return memo[id(tensor)]


def _is_constant(value: Any) -> bool:
    """Most of what modules hold: numbers, strings, and tuples of them, such as a kernel's size."""
    kind = type(value)
    return kind in ATOMS or (kind is tuple and all(map(_is_constant, value)))


def _copied(value: Any, memo: dict[int, Any], name: str) -> Any:
    """A copy of the attribute ``name``, or itself where that is as good."""
    if type(value) is dict and not value:  # of most modules, their buffers
        return memo.setdefault(id(value), {})
    if isinstance(value, OUTSIDE) or type(value).__module__.startswith("mim_plugins."):
        return value
    known = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # whatever a user's class raises
        while len(memo) > known:  # copies that were not finished
            memo.popitem()
    if isinstance(value, (dict, list)):  # all but what cannot be copied
        found = memo[id(value)] = copy.copy(value)
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found[key] = _copied(value[key], memo, f"{name}[{key!r}]")
        return found
    what = f"{name}, a {type(value).__name__}, cannot be copied"
    if isinstance(value, Iterator):
        raise RuntimeError(f"{what}: a step that is repeated would go on with it twice")
    warnings.warn(f"{what}: what a step does to it is repeated with the step", stacklevel=2)
    return value
