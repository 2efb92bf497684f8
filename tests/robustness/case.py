"""What a row of the table of plugins says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from .training import TRAIN, Run, Setup

Builder = Callable[[], Setup]


@dataclass(frozen=True)
class Case:
    """One plugin in one framework.

    Args:
        name: Of the row.
        framework: ``"mmpretrain"`` or ``"lightly"``.
        on: Builds it switched on.
        neutral: Builds its neutral setting; None where there is none, with ``no_neutral``.
        stock: Builds the stock pipeline.
        backbone: Builds the stock module that upstream's linear-probe and fine-tune configs
            load, and the prefix of its weights in a checkpoint.
        calls: How often a step calls each masking or mixer, by class name.
        draws: Random tensors drawn per step beyond those of stock.
        host_draws: Whether stock and plugin draw the same with Python and numpy.
        logged: What is logged beyond stock, once per step.
        once: Prefixes of parameters and buffers that a step changes exactly as a stock step does.
        syncs: Times per step beyond stock's that the host waits for a GPU.
        own: Prefix of weights that stock has not.
        in_workers: Whether the plugin draws in data-loader workers.
        no_neutral: Why there is no neutral setting.
    """

    name: str
    framework: str
    on: Builder
    neutral: Builder | None
    stock: Builder
    backbone: Callable[[], tuple[nn.Module, str]]
    calls: dict[str, int] = field(default_factory=dict)
    draws: int = 0
    host_draws: bool = True
    logged: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    syncs: int = 0
    own: str = "regularizers."
    in_workers: bool = False
    no_neutral: str = ""

    @property
    def workers(self) -> int:
        """Data-loader workers of the test of interruption."""
        return 2 if self.in_workers or self.name.startswith("mixmask MoCo") else 0

    def train(self, builder: Builder, steps: int, workers: int = 0) -> Run:
        """A run of ``on``, ``neutral`` or ``stock``; equal ones run once."""
        return _train(self.framework, builder, steps, workers)

    def train_anew(self, builder: Builder, steps: int, **options: Any) -> Run:
        """As :meth:`train`, run now; ``options`` are those of :mod:`.training`."""
        return TRAIN[self.framework](builder(), steps, **options)

    def __str__(self) -> str:
        return f"{self.framework}-{self.name}"


@cache
def _train(framework: str, builder: Builder, steps: int, workers: int) -> Run:
    return TRAIN[framework](builder(), steps, workers)
