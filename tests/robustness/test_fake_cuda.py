"""Every row's training step with tensors that say they are on a GPU, see ``fake_cuda.py``."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mim_plugins._versions import numbers
from mim_plugins.masking import (
    BlockMasking,
    ComplementaryMasking,
    DPPMasking,
    GridMasking,
    HierarchicalMasking,
    Masking,
)

from .case import Builder, Case
from .cases import CASES
from .fake_cuda import FEW, Watch, syncs, without_driver

if numbers(torch.__version__) < [2, 14, 0]:  # of 2.7; those between have not been tried
    pytest.skip("old torch asks the driver for fake tensors, or crashes", allow_module_level=True)

_stock: dict[Builder, Counter] = {}


def measured(case: Case, builder: Builder, patch: pytest.MonkeyPatch) -> Counter:
    try:
        return syncs(case, builder, patch)
    except RuntimeError as error:  # of a boolean index that does not give all elements
        if "device" in str(error).lower():
            raise
        return syncs(case, builder, patch, FEW)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_device_mismatch_and_the_host_waits_no_more_than_for_stock(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.stock not in _stock:
        _stock[case.stock] = measured(case, case.stock, monkeypatch)
    on, stock = measured(case, case.on, monkeypatch), _stock[case.stock]
    assert on.total() - stock.total() <= case.syncs, on - stock


@pytest.mark.parametrize(
    "masking",
    [
        DPPMasking(bandwidth=2.0),
        DPPMasking(kernel="cosine", features="pixels"),
        ComplementaryMasking(base=DPPMasking()),
        ComplementaryMasking(shared=True),
        HierarchicalMasking({"grid": (14, 14)}, level=3),
        BlockMasking(),
        GridMasking(),
    ],
    ids=repr,
)
def test_no_masking_makes_the_host_wait(masking: Masking, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_driver(monkeypatch), FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(4, 3, 224, 224, device="cuda")
        masking(images)
        with Watch() as watch:
            assert masking(images).mask.device == images.device
    assert not watch.syncs


def test_what_is_wrong_on_a_gpu_is_found() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), Watch() as watch:
        x = torch.ones(3, device="cuda")
        _ = x.sum().item(), x[x > 0], x.cpu(), x.new_tensor([1.0])
        with pytest.raises(RuntimeError, match="device"):
            x + torch.ones(3)
    assert sorted(what for what, _ in watch.syncs) == [
        "boolean index", "copy to the device", "copy to the host", "value read",
    ]  # fmt: skip
    assert all("test_fake_cuda.py" in where for _, where in watch.syncs)
