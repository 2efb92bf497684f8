"""wrap() on modules shaped like lightly's, under Lightning's own Trainer."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import pytorch_lightning as pl
import torch
from lightly.models import utils

from mim_plugins.lightly import wrap
from mim_plugins.masking import ComplementaryMasking, DPPMasking, GridMasking
from mim_plugins.regularizers import UniformityLoss

from .modules import MAE, BlockMasked, Unmasked


def loader(batches: int = 20, batch: int = 4) -> torch.utils.data.DataLoader:
    images = torch.rand(batches * batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dataset = [([image], 0, str(index)) for index, image in enumerate(images)]
    return torch.utils.data.DataLoader(dataset, batch_size=batch)


def fit(
    model: pl.LightningModule, folder: Path, epochs: int = 1, **arguments: object
) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, loader(), **arguments)
    return trainer


def make() -> MAE:
    torch.manual_seed(0)
    return MAE()


def test_dpp_masks_reach_encoder_and_target() -> None:
    model = wrap(make(), masking=DPPMasking(patch_size=4, tau=0.0))
    model.log = lambda *args, **kwargs: None
    batch = next(iter(loader()))
    torch.manual_seed(5)
    model.training_step(batch, 0)
    torch.manual_seed(5)
    noise = torch.rand(4, 65)[:, 1:]
    expected = DPPMasking(patch_size=4, tau=0.0)(batch[0][0], noise=noise)
    assert torch.equal(model.seen[0][:, 1:] - 1, expected.ids_keep)


def test_the_class_stays_stock(tmp_path: Path) -> None:
    stock_step, stock_function = MAE.training_step, utils.random_token_mask
    model = wrap(make(), masking=DPPMasking(patch_size=4))
    fit(model, tmp_path)
    assert MAE.training_step is stock_step
    assert utils.random_token_mask is stock_function
    assert isinstance(model, MAE)
    assert type(model).__name__ == "MAE"
    assert type(make()) is MAE
    strict = make()
    strict.load_state_dict(model.state_dict(), strict=True)


class Derived(MAE):
    """Overrides the method that draws the masks and calls it through ``super()``."""

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        self.label = batch[1]
        return super().training_step(batch, batch_idx)


def test_overridden_methods_run_too() -> None:
    model = wrap(Derived(), masking=GridMasking(patch_size=4, random_shift=False))
    model.log = lambda *args, **kwargs: None
    model.training_step(next(iter(loader())), 0)
    assert len(model.label) == 4
    assert (model.seen[0] == model.seen[0][:1]).all()


class Elsewhere(MAE):
    """Its masks are drawn where ``wrap`` does not get."""

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        return MAE.training_step(self, batch, batch_idx)


def test_masks_out_of_reach_are_no_secret(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="training step of Elsewhere drew none of its masks"):
        fit(wrap(Elsewhere(), masking=DPPMasking(patch_size=4)), tmp_path)


class Validated(MAE):
    """The same loss for training and validation, in a method of its own."""

    def loss(self, batch: tuple) -> torch.Tensor:
        return super().training_step(batch, 0)

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


class TrainingStepValidated(MAE):
    """Validates by its training step."""

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


@pytest.mark.parametrize("make", [Validated, TrainingStepValidated])
@pytest.mark.parametrize("regularized", [False, True])
def test_validation_gets_masks_and_the_stock_loss(
    make: type[MAE], regularized: bool, tmp_path: Path
) -> None:
    """One mask per image, whatever the number in training; no terms."""
    regularizers = [UniformityLoss(100.0)] if regularized else []
    masking = ComplementaryMasking(4, patch_size=4)
    model = wrap(make(), masking=masking, regularizers=regularizers)
    trainer = fit(model, tmp_path, val_dataloaders=loader(2))
    assert [len(kept) for kept in model.seen] == [4] * 2 + [16] * 20 + [4] * 2
    kept = torch.cat(model.seen[-2:])
    assert len(kept.unique(dim=0)) == len(kept)
    assert trainer.callback_metrics["val_loss"] < 1
    assert type(wrap(MAE(), masking=masking)).validation_step is pl.LightningModule.validation_step


def test_two_models_do_not_share_their_masks() -> None:
    stock, one, other = make(), make(), make()
    wrap(one, masking=DPPMasking(patch_size=4, tau=0.0))
    wrap(other, masking=GridMasking(patch_size=4, random_shift=False))
    batch = next(iter(loader()))
    for model in (stock, one, other):
        model.log = lambda *args, **kwargs: None
        torch.manual_seed(0)
        model.training_step(batch, 0)
    assert not torch.equal(one.seen[0], stock.seen[0])
    assert (other.seen[0] == other.seen[0][:1]).all()


def test_copy_and_pickle_stay_wrapped() -> None:
    model = wrap(make(), masking=GridMasking(patch_size=4, random_shift=False))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.log = lambda *args, **kwargs: None
        other.training_step(next(iter(loader())), 0)
        kept = other.seen[0]
        assert (kept == kept[:1]).all()
        assert all(
            torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items()
        )


def test_block_masks_of_two_views() -> None:
    model = wrap(BlockMasked(), masking=DPPMasking(mask_ratio=0.7, patch_size=4, tau=0.5))
    views = [torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32), torch.rand(8, 3, 16, 16)]
    model.training_step((views, None), 0)
    counts = model.seen[0].flatten(1).sum(dim=1)
    assert (counts > 0).sum() == 8
    assert ((counts == 0) | ((counts >= 41) & (counts <= 48))).all()


DDP = """
import sys, torch, pytorch_lightning as pl
from tests.lightly.modules import MAE
from tests.lightly.test_wrap import loader
from mim_plugins.lightly import wrap
from mim_plugins.masking import DPPMasking
if __name__ == "__main__":
    pl.seed_everything(0)
    model = wrap(MAE(), masking=DPPMasking(patch_size=4))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy=sys.argv[1], logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(model, loader())
    if trainer.global_rank == 0:
        torch.save(model.state_dict(), sys.argv[2])
        print("world size", trainer.world_size)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp_find_unused_parameters_true", "ddp_spawn_find_unused_parameters_true"]
)
def test_two_processes(strategy: str, tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    result = subprocess.run(
        [sys.executable, str(script), strategy, str(tmp_path / "weights.pt")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert "world size 2" in result.stdout
    trained = torch.load(tmp_path / "weights.pt")
    pl.seed_everything(0, verbose=False)
    model = MAE()
    before = model.prediction_head.weight.detach().clone()
    assert not torch.equal(trained["prediction_head.weight"], before)
    model.load_state_dict(trained, strict=True)


def test_rejects() -> None:
    with pytest.raises(
        ValueError, match="mask_ratio is 0.5 in the masking and 0.75 in what uses it"
    ):
        wrap(make(), masking=DPPMasking(mask_ratio=0.5, patch_size=4))
    with pytest.raises(ValueError, match="patch_size is 16 in the masking and 4 in what uses it"):
        wrap(make(), masking=DPPMasking(patch_size=16))
    with pytest.raises(TypeError, match="Unmasked calls neither random_token_mask nor random_bl"):
        wrap(Unmasked(), masking=DPPMasking())
    with pytest.raises(ValueError, match="needs masking, regularizers, mixing or unmix, got None"):
        wrap(make())
    with pytest.raises(
        TypeError, match="must be a pytorch_lightning.LightningModule, .* got torch.*Linear"
    ):
        wrap(torch.nn.Linear(1, 1), masking=DPPMasking())
    with pytest.raises(TypeError, match="masking must be a mim_plugins.masking.Masking, got 0.5"):
        wrap(make(), masking=0.5)
    model = wrap(make(), masking=DPPMasking(patch_size=4))
    with pytest.raises(ValueError, match="model is wrapped already"):
        wrap(model, masking=DPPMasking(patch_size=4))
    model.log = lambda *args, **kwargs: None
    model._mim_plugin.batch = ([torch.rand(4, 3, 32, 32)],)
    with pytest.raises(ValueError, match="masks for 5 images were asked for"):
        model._mim_plugin.random_token_mask((5, 65), 0.75)
    model._mim_plugin.batch = {"images": torch.rand(4, 3, 32, 32)}
    with pytest.raises(TypeError, match="batch must be a list, images .* first, .* got dict"):
        model._mim_plugin.random_token_mask((4, 65), 0.75)
