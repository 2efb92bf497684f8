"""The queue of a memory bank in checkpoints; seeds of epochs."""

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import torch
from lightly.loss import NTXentLoss
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mim_plugins.lightly import EpochSeed, MemoryBankCheckpoint


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


class Noisy(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.seen: list[tuple[int, float, float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        noise = torch.rand(())
        self.seen.append((self.current_epoch, batch[0].sum().item(), noise.item()))
        return self.layer(batch[0] + noise).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_two_fits_of_one_trainer_are_one() -> None:
    def run(*stops: int) -> Noisy:
        torch.manual_seed(3)
        module, data = Noisy(), TensorDataset(torch.rand(6, 2))
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[EpochSeed(0)],
        )  # fmt: skip
        for stop in stops:
            trainer.fit_loop.max_epochs = stop
            trainer.fit(module, DataLoader(data, batch_size=2, shuffle=True))
        return module

    once, twice = run(4), run(2, 4)
    assert len(once.seen) == 12
    assert twice.seen == once.seen
    assert torch.equal(twice.layer.weight, once.layer.weight)
