"""What mmengine's own checkpoints need beside tensors, and nothing that can do harm.

torch's safe loading (``weights_only=True``, the default since torch 2.6) refuses the
:class:`~mmengine.logging.HistoryBuffer` and the numpy arrays in a checkpoint of mmengine.
Allowing the classes themselves is not safe: ``numpy.ndarray`` makes Python objects of any
address, and ``HistoryBuffer`` writes what the file says into its class. Here every pickled
name stands for a reconstructor that checks what it is given and makes numeric arrays,
numeric scalars and histories only.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def _refuse(what: str) -> ValueError:
    return ValueError(f"a checkpoint of mmengine may hold no {what}: do not trust this file")


class _Dtype:
    """Stands for ``numpy.dtype``: numbers of one kind, in either byte order."""

    __slots__ = ("dtype",)  # numpy takes anything with a dtype for one
    dtype: np.dtype

    def __new__(cls, spec: object, align: object = False, copy: object = True) -> _Dtype:
        if not (isinstance(spec, str) and re.fullmatch(r"[biufc]\d{1,2}", spec)):
            raise _refuse(f"dtype {spec!r}")
        self = super().__new__(cls)
        self.dtype = np.dtype(spec)
        return self

    def __setstate__(self, state: object) -> None:
        # (version, byte order, sub-array, names, fields, size, alignment, flags)
        if not (isinstance(state, tuple) and len(state) == 8 and state[1] in ("<", ">", "|")) or (
            repr(state[2:]) != "(None, None, None, -1, -1, 0)"
        ):
            raise _refuse(f"dtype with state {state!r}")
        self.dtype = np.dtype(state[1] + self.dtype.str[1:])

    def __reduce__(self) -> Any:
        return self.dtype.__reduce__()  # saved again, it is numpy's own


class _Array(np.ndarray):
    """Stands for ``numpy.ndarray``: filled once, from bytes, with numbers."""

    def __new__(cls, *args: object) -> _Array:
        if args:
            raise _refuse("call of numpy.ndarray")
        return super().__new__(cls, (0,), "b")

    def __setstate__(self, state: Any) -> None:
        if "filled" in self.__dict__:  # a tensor may share the memory by now
            raise _refuse("array that is filled twice")
        version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or type(raw) is not bytes:
            raise _refuse(f"array of dtype {dtype!r} and data of type {type(raw).__name__}")
        sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if version != 1 or not sizes or math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise _refuse(f"array of shape {shape!r} in {len(raw)} bytes")
        self.__dict__["filled"] = True
        checked: Any = (1, shape, dtype.dtype, bool(fortran), raw)
        super().__setstate__(checked)

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


def _reconstruct(cls: object, shape: object, typecode: object) -> _Array:
    """``numpy._core.multiarray._reconstruct``: an empty array, to be filled."""
    if cls is not _Array:
        raise _refuse(f"array of class {cls!r}")
    return _Array()


def _scalar(dtype: object, raw: object) -> np.generic:
    """``numpy._core.multiarray.scalar``."""
    if not isinstance(dtype, _Dtype) or type(raw) is not bytes or len(raw) != dtype.dtype.itemsize:
        raise _refuse(f"scalar of dtype {dtype!r} from {raw!r}")
    return np.frombuffer(raw, dtype.dtype)[0]


class _History(HistoryBuffer):
    """Stands for ``HistoryBuffer``, and becomes one when its state has been checked."""

    def __init__(self, *args: object) -> None:
        raise _refuse("call of HistoryBuffer")

    def __setstate__(self, state: Any) -> None:
        self._set_default_statistics()
        known = self._statistics_methods
        statistics = state.get("statistics_methods", {})
        logs, counts = state.get("_log_history"), state.get("_count_history")
        if (
            set(state) - {"statistics_methods"} != {"max_length", "_log_history", "_count_history"}
            or type(state["max_length"]) is not int
            or not all(isinstance(array, _Array) and array.ndim == 1 for array in (logs, counts))
            or len(logs) != len(counts)
            or any(known.get(name) is not method for name, method in statistics.items())
        ):
            raise _refuse("HistoryBuffer other than two arrays of one length and their limit")
        self.max_length = state["max_length"]
        self._log_history, self._count_history = np.array(logs), np.array(counts)
        self.__class__ = HistoryBuffer


def _statistic(owner: object, name: object) -> Any:
    """``getattr`` as far as the histories of stock mmengine need it."""
    if owner is not _History or name not in ("min", "max", "current", "mean"):
        raise _refuse(f"attribute {name!r} of {owner!r}")
    return getattr(HistoryBuffer, str(name))


_ALLOWED: list = [
    (_History, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_statistic, "builtins.getattr"),
    (_Array, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    *(
        (make, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")  # numpy 1 and 2
        for make, name in ((_reconstruct, "_reconstruct"), (_scalar, "scalar"))
    ),
]
_LOADING = threading.RLock()


@contextmanager
def mmengine_checkpoints() -> Iterator[None]:
    """Within, ``torch.load(weights_only=True)`` loads what mmengine saves.

    torch keeps one list for the whole process: other threads wait with loading by mmengine,
    and what they load by torch meanwhile may hold numbers and histories as well.
    """
    with _LOADING:
        here = set(torch.serialization.get_safe_globals())
        with torch.serialization.safe_globals([each for each in _ALLOWED if each not in here]):
            yield
