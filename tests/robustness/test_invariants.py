"""The three invariants, determinism and workers, for every row of the table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mim_plugins import masking, mixmask

from .case import Case
from .cases import CASES

STEPS = 20  # neutral = stock
FEW = 6

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@every_case
def test_neutral_equals_stock_bit_for_bit(case: Case) -> None:
    """Losses, weights, what is logged and the random states after 20 optimiser steps."""
    if case.neutral is None:
        pytest.skip(case.no_neutral)
    neutral, stock = case.train(case.neutral, STEPS), case.train(case.stock, STEPS)
    assert len(stock.losses) == STEPS
    assert neutral.losses == stock.losses
    assert_equal(neutral.weights, stock.weights)
    assert neutral.logged == stock.logged
    assert neutral.rng == stock.rng


@every_case
def test_switched_on_it_is_deterministic_whatever_the_workers(case: Case) -> None:
    """Equal with 0 and 2 workers; what draws in workers, twice with 2."""
    first = case.train(case.on, FEW, workers=2 if case.in_workers else 0)
    again = case.train_anew(case.on, FEW, workers=2)
    assert first.losses == again.losses
    assert_equal(first.weights, again.weights)
    assert first.rng == again.rng
    stock = case.train(case.stock, STEPS)
    assert first.losses != stock.losses[:FEW], "the row does not switch it on"


@every_case
def test_its_checkpoint_is_stock(case: Case, tmp_path: Path) -> None:
    """Into the stock pipeline, and the backbone into what upstream evaluates, strictly."""
    weights = case.train(case.on, FEW).weights
    stock = case.stock().model
    shared = {key: value for key, value in weights.items() if not key.startswith(case.own)}
    assert list(shared) == list(stock.state_dict())
    stock.load_state_dict(shared, strict=True)
    backbone, prefix = case.backbone()
    pretrained = {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }
    if case.framework == "mmpretrain":  # by the config that upstream's benchmarks give it
        path = tmp_path / "checkpoint.pth"
        torch.save({"state_dict": weights}, path)
        backbone.init_cfg = {"type": "Pretrained", "checkpoint": str(path), "prefix": prefix}
        backbone.init_weights()
    else:
        backbone.load_state_dict(pretrained, strict=True)
    loaded = backbone.state_dict()
    assert set(loaded) <= set(pretrained)
    assert set(pretrained) - set(loaded) <= {"mask_token"}
    for key, value in loaded.items():
        assert torch.equal(value, pretrained[key]), key


@every_case
def test_every_step_has_each_effect_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(cls: type, method: str) -> None:
        original = getattr(cls, method)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls[type(self).__name__] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, method, counted)

    for name in masking.__all__:
        if "scores" in vars(getattr(masking, name)) and name != "Masking":
            count(getattr(masking, name), "scores")
    for cls in (mixmask.MixMask, mixmask.EraseMask, mixmask.UnMix):
        count(cls, "__call__")
    if case.framework == "mmpretrain":
        from mim_plugins.mmpretrain import DPPMaskGenerator

        count(DPPMaskGenerator, "transform")
    steps = 2
    on = case.train_anew(case.on, steps, count=True)
    assert calls == {name: steps * number for name, number in case.calls.items()}
    stock = case.train_anew(case.stock, steps, count=True)
    assert on.draws - stock.draws == steps * case.draws
    assert (on.rng[:2] == stock.rng[:2]) == case.host_draws
    assert on.logged == stock.logged + Counter(dict.fromkeys(case.logged, steps))

    # Counters of queues and moving averages; batch norm counts passes, not steps.
    for key, value in stock.weights.items():
        if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
            assert torch.equal(on.weights[key], value), key
    if case.once:
        states = [state(case.train_anew(each, 1).model) for each in (case.on, case.stock)]
        assert {key for key in states[1] if key.startswith(case.once)}
        for key, value in states[1].items():
            if key.startswith(case.once):
                torch.testing.assert_close(states[0][key], value, rtol=1e-5, atol=1e-6)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that are not saved, as lightly's memory bank."""
    return dict([*model.named_parameters(), *model.named_buffers()])
