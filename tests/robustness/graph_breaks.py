"""The table of graph breaks in docs/robustness.md: ``python -m tests.robustness.graph_breaks``.

Two steps of every row, stock and plugin, compiled as its framework does it with the backend
``eager``; losses and weights must be those of the steps that are not compiled.
"""

from __future__ import annotations

import logging

import torch

from .case import Builder, Case
from .cases import CASES
from .test_precision import compiled


def measure(case: Case, builder: Builder) -> str:
    """Number of graph breaks, or why there is none."""
    try:
        run, breaks = compiled(case, builder)
    except Exception as error:  # whatever Dynamo raises is a row
        return f"{type(error).__name__}: {error}".split("\n", 1)[0][:80]
    plain = case.train_anew(builder, 2)
    same = run.losses == plain.losses and all(
        torch.equal(run.weights[key], value) for key, value in plain.weights.items()
    )
    return f"{breaks}" if same else f"{breaks}, other losses or weights"


if __name__ == "__main__":
    logging.disable(logging.INFO)  # mmengine lists every weight it initialises
    print("| row | stock | plugin |\n|---|---|---|")
    for case in CASES:
        print(f"| {case} | {measure(case, case.stock)} | {measure(case, case.on)} |", flush=True)
