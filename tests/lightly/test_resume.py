"""The queue of a memory bank in checkpoints."""

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import torch
from lightly.loss import NTXentLoss

from mim_plugins.lightly import MemoryBankCheckpoint


def test_the_queue_comes_back_and_one_of_another_size_is_refused() -> None:
    saved, resumed, larger = (NTXentLoss(memory_bank_size=(size, 4)) for size in (8, 8, 16))
    saved(torch.rand(3, 4, requires_grad=True), torch.rand(3, 4))
    callback, checkpoint = MemoryBankCheckpoint(), {}
    callback.on_save_checkpoint(None, saved, checkpoint)
    callback.on_load_checkpoint(None, resumed, checkpoint)
    assert torch.equal(resumed.memory_bank.bank, saved.memory_bank.bank)
    assert resumed.memory_bank.bank_ptr.tolist() == [3]
    with pytest.raises(ValueError, match=r"must have the size \(8, 4\) .*, got \(16, 4\)"):
        callback.on_load_checkpoint(None, larger, checkpoint)
