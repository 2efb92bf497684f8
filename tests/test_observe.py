import random

import numpy as np
import pytest
import torch
from torch import nn

from mim_plugins._observe import observing, preserve_rng


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_rng_is_preserved_also_when_it_fails() -> None:
    with preserve_rng(seed=3):
        expected = draws()
    with preserve_rng(seed=3):
        first = draws()
        with pytest.raises(RuntimeError, match="inside"), preserve_rng(seed=1):  # noqa: PT012
            draws()
            raise RuntimeError("inside")
        second = draws()
    assert first == expected
    with preserve_rng(seed=3):
        draws()
        assert draws() == second


def test_modes_and_buffers_come_back_one_by_one() -> None:
    class Stubborn(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("a model's own train() may do anything")

    model = Stubborn(nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 3))
    model[0].training = False  # frozen statistics in a model that trains
    model[2].training = False
    images, state = torch.rand(4, 3), torch.get_rng_state()
    with observing(model):
        assert not any(module.training for module in model.modules())
        output = model(images)
        torch.rand(1)
        assert not output.requires_grad
    assert [module.training for module in model.modules()] == [True, False, True, False]
    assert model[0].num_batches_tracked == 0
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()
