"""Two gloo processes against one: every row of the table, and what cannot hold, with its reason.

A new row of the table is covered without a change here; it must equal one process unless
``DIFFERENT`` says why it does not.
"""

import functools

import pytest
import torch

from ..two_processes import TwoProcesses
from .case import Case
from .cases import CASES
from .distributed import (
    BATCH,
    as_one_of_two,
    as_rows,
    features_of_shards,
    find,
    one_step,
    train_as_one_of_two,
)

_PIXELS = (
    "the mean is over the pixels of a process's batch that count, whose number depends on the "
    "masks; so does stock's if masks differ in size"
)

# Rows for which two processes do not equal one with the joined batch, and why.
DIFFERENT = {
    "mmpretrain-mae boundary": _PIXELS,
    "mmpretrain-simmim boundary": _PIXELS,
    "lightly-mae boundary": _PIXELS,
    "lightly-ibot dpp": "which images are masked is drawn per batch, and so is stock's iBOT",
}

# Factors of the gradients: mmpretrain's SimCLR gathers features by a layer whose backward pass
# gives each rank its own rows' gradient, not the sum of all ranks'; averaging divides it once more.
GRADIENT_SCALE = {"mmpretrain-mixmask SimCLR": 0.5}

FRAMEWORKS = {case.framework for case in CASES}

every_row = pytest.mark.parametrize("case", CASES, ids=str)


def unused(case: Case) -> set[str]:
    """Parameters to which the stock step gives no gradient."""
    return _unused(str(case))


@functools.cache
def _unused(name: str) -> set[str]:
    return one_step(name, find(name).stock, range(2 * BATCH))["unused"]


@every_row
def test_the_plugin_leaves_no_parameter_unused_that_stock_uses(case: Case) -> None:
    assert one_step(str(case), case.on, range(2 * BATCH))["unused"] <= unused(case)


@every_row
def test_two_processes_equal_one(case: Case, two_processes: TwoProcesses) -> None:
    ranks = two_processes.run(as_one_of_two, str(case), "on", bool(unused(case)))
    losses = _mean([rank["losses"] for rank in ranks])
    if str(case) in DIFFERENT:  # the mean of two processes that know nothing of each other
        halves = [one_step(str(case), case.on, as_rows(rank)) for rank in (0, 1)]
        one = {key: _mean([half[key] for half in halves]) for key in ("losses", "gradients")}
    else:
        one = one_step(str(case), case.on, range(2 * BATCH))
    scale = GRADIENT_SCALE.get(str(case), 1.0)
    gradients = {key: scale * value for key, value in one["gradients"].items()}
    largest = max(value.abs().max().item() for value in gradients.values())
    assert largest > 1e-4, "else comparing says nothing"
    torch.testing.assert_close(losses, one["losses"], rtol=1e-5, atol=1e-6)
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], gradients, rtol=1e-4, atol=1e-5 * largest)
        if "queues" in one:
            torch.testing.assert_close(rank["queues"], one["queues"])


def _mean(values: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([value[key] for value in values]).mean(dim=0) for key in values[0]}


@every_row
def test_ranks_stay_equal_in_upstream_s_own_ddp(case: Case, two_processes: TwoProcesses) -> None:
    """MMDistributedDataParallel or Lightning's ddp, with stock's find_unused_parameters."""
    one, other = two_processes.run(train_as_one_of_two, str(case), 2, bool(unused(case)))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.isfinite().all(), key
        assert torch.equal(value, other[key]), key
    start = case.on().model.state_dict()
    assert any(not torch.equal(value, start[key]) for key, value in one.items())


# One of each kind. Momentum encoders read weights that FSDP has sharded, in stock as well.
SHARDED = ["mae dpp", "umae", "usimmim", "mi-mae", "mixmask SimSiam"]


@pytest.mark.skipif("mmpretrain" not in FRAMEWORKS, reason="mmpretrain is not installed")
@pytest.mark.parametrize("name", SHARDED)
def test_fsdp_trains_as_ddp_does(name: str, two_processes: TwoProcesses) -> None:
    """mmengine's wrapper, sharding every module of 1,000 parameters; stock's state dict."""
    name = f"mmpretrain-{name}"
    ddp, sharded = (
        two_processes.run(train_as_one_of_two, name, 2, False, sharded)[0]
        for sharded in (False, True)
    )
    torch.testing.assert_close(sharded, ddp, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif("mmpretrain" not in FRAMEWORKS, reason="mmpretrain is not installed")
def test_hooks_that_take_features_refuse_shards(two_processes: TwoProcesses) -> None:
    for said in two_processes.run(features_of_shards, "mmpretrain-mae dpp"):
        assert "weights are sharded (FSDP): remove EffectiveRankHook" in said


@pytest.mark.skipif("mmpretrain" not in FRAMEWORKS, reason="mmpretrain is not installed")
def test_the_factor_of_simclr_is_stock_s(two_processes: TwoProcesses) -> None:
    case = next(case for case in CASES if str(case) in GRADIENT_SCALE)
    one = one_step(str(case), case.stock, range(2 * BATCH))
    for rank in two_processes.run(as_one_of_two, str(case), "stock", False):
        torch.testing.assert_close(rank["losses"], one["losses"])
        halves = {key: 0.5 * value for key, value in one["gradients"].items()}
        torch.testing.assert_close(rank["gradients"], halves, rtol=1e-4, atol=1e-6)
