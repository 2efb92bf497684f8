"""MI-MAE on an unmodified lightly module."""

import copy

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import pytorch_lightning as pl
import torch

from mim_plugins.lightly import MutualInformationLoss, wrap
from mim_plugins.masking import ComplementaryMasking, DPPMasking
from mim_plugins.regularizers import Step

from ..modules import MAE


class Data(torch.utils.data.Dataset):
    """Images in the form of lightly's datasets: views, label, file name."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(16, 3, 32, 32, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        return [self.images[index]], index, f"{index}.png"


def terms(**arguments: object) -> MutualInformationLoss:
    torch.manual_seed(5)
    return MutualInformationLoss(32, **{"hidden_dim": 16, "projection_dim": 8, **arguments})


def fit(model: pl.LightningModule, epochs: int = 1) -> dict[str, torch.Tensor]:
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(1)
    trainer.fit(model, torch.utils.data.DataLoader(Data(), batch_size=8))
    return {name: value.clone() for name, value in trainer.callback_metrics.items()}


def module() -> MAE:
    torch.manual_seed(0)
    return MAE()


@pytest.mark.parametrize("base", [None, DPPMasking(patch_size=4)])
def test_masks_are_complementary_and_terms_logged(base: DPPMasking | None) -> None:
    model = wrap(
        module(),
        masking=ComplementaryMasking(4, patch_size=4, base=base),
        regularizers=[terms(output_weight=0.1)],
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logged = fit(model)
    idx_keep = model.seen[0]
    assert idx_keep.shape == (32, 17)
    patches = idx_keep.view(4, 8, 17)[:, :, 1:].transpose(0, 1).flatten(1)
    assert torch.equal(patches.sort(dim=1).values, torch.arange(1, 65).expand(8, -1))
    name = "mutual_information"
    assert {f"loss_{name}_{term}" for term in ("cross", "output", "input", "variational")} < set(
        logged
    )
    assert {f"{name}_{term}" for term in ("cross", "output", "input")} < set(logged)
    moved = {
        key.removeprefix("regularizers.").split(".")[1]
        for key, value in model.state_dict().items()
        if key.startswith("regularizers.") and not torch.equal(value, before[key])
    }
    assert moved == {"projection", "target", "variational"}


def test_the_terms_are_those_of_the_encoders_output() -> None:
    model = wrap(module(), masking=ComplementaryMasking(4, patch_size=4), regularizers=[terms()])
    alone = copy.deepcopy(model.regularizers["mutual_information"])
    batch = ([Data().images[:8]], torch.arange(8), [str(i) for i in range(8)])
    logged = {}
    model.log = lambda name, value, **kwargs: logged.setdefault(name, value)
    torch.manual_seed(3)
    total = model.training_step(batch, 0)
    images = batch[0][0].repeat(4, 1, 1, 1)
    tokens = model.backbone.encode(images=images, idx_keep=model.seen[0])
    mask = torch.ones(32, 65).scatter(1, model.seen[0], 0.0)[:, 1:]
    expected = alone(Step(tokens, images=batch[0][0], mask=mask, num_masks=4))
    for name in ("cross", "input", "variational"):
        found = logged[f"loss_mutual_information_{name}"]
        torch.testing.assert_close(found, expected[f"loss_{name}"])
    parts = sum(value for name, value in expected.items() if name.startswith("loss"))
    torch.testing.assert_close(total, logged["train_loss"] + parts)
