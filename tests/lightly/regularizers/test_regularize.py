"""wrap(regularizers=[...]) on modules shaped like lightly's, under Lightning's own Trainer."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import pytorch_lightning as pl
import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.utils.scheduler import CosineWarmupScheduler
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim import lr_scheduler

from mim_plugins.lightly import UniformityLoss, wrap
from mim_plugins.masking import ComplementaryMasking, DPPMasking, GridMasking
from mim_plugins.regularizers import Step, Term, uniformity

from ..modules import MAE, Unmasked
from ..test_wrap import fit, loader, make


class Labelled(MAE):
    """Keeps what the step saw and returned."""

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        self.labels = batch[1]
        return super().training_step(batch, batch_idx)


class SimMIM(MAE):
    """The encoder sees mask tokens in place of the hidden patches."""

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        images = batch[0][0]
        _, self.idx_mask = utils.random_token_mask(
            size=(len(images), self.sequence_length), mask_ratio=0.75, device=images.device
        )
        encoded = self.backbone.encode(images=images, idx_mask=self.idx_mask)
        return {"loss": utils.get_at_index(encoded, self.idx_mask).square().mean()}


class Weighted(Term):
    """A regularizer with weights of its own."""

    name = "weighted"

    def __init__(self) -> None:
        super().__init__(weight=1.0)
        self.linear = nn.Linear(32, 1)

    def formula(self, step: Step) -> dict[str, Tensor]:
        assert step.images.shape == (4, 3, 32, 32)
        assert step.mask.shape == (4, 64)
        value = self.linear(step.pooled("cls")).square().mean()
        return {"loss_fit": value, "twice": 2 * value}


def quiet(model: pl.LightningModule) -> dict[str, Tensor]:
    logged: dict[str, Tensor] = {}
    model.log = lambda name, value, **kwargs: logged.update({name: value})
    return logged


@pytest.mark.parametrize("token", ["cls", "mean"])
def test_the_term_is_added_and_logged(token: str) -> None:
    stock, model = make(), wrap(make(), regularizers=[UniformityLoss(0.5, token=token)])
    batch = next(iter(loader()))
    quiet(stock)
    torch.manual_seed(1)
    before = stock.training_step(batch, 0)
    logged = quiet(model)
    torch.manual_seed(1)
    total = model.training_step(batch, 0)
    latent = stock.backbone.encode(batch[0][0], idx_keep=stock.seen[0])
    feature = latent[:, 0] if token == "cls" else latent[:, 1:].mean(dim=1)
    cosine = torch.nn.functional.cosine_similarity(feature[:, None], feature[None], dim=2)
    expected = 0.5 * cosine.square().mean()
    assert torch.allclose(total - before, expected, atol=1e-6)
    assert torch.allclose(logged["loss_uniformity"], expected, atol=1e-6)
    # the encoder is the stock one again
    assert "encode" not in vars(model.backbone)


def test_the_encoder_of_all_tokens_gets_the_mean_of_the_visible_ones() -> None:
    model = wrap(SimMIM(), regularizers=[UniformityLoss(1.0, token="mean")])
    quiet(model)
    batch = next(iter(loader()))
    output = model.training_step(batch, 0)
    latent = model.backbone.encode(batch[0][0], idx_mask=model.idx_mask)
    visible = torch.ones(4, 65).scatter(1, model.idx_mask, 0.0)[:, 1:, None]
    feature = (latent[:, 1:] * visible).sum(dim=1) / visible.sum(dim=1)
    cosine = torch.nn.functional.cosine_similarity(feature[:, None], feature[None], dim=2)
    expected = utils.get_at_index(latent, model.idx_mask).square().mean() + cosine.square().mean()
    assert torch.allclose(output["loss"], expected, atol=1e-5)


class Prefixed(pl.LightningModule):
    """SimMIM or MAE on a ViT without [CLS], with registers, or with both."""

    def __init__(self, keep: bool, **vit: Any) -> None:
        super().__init__()
        size = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
        self.backbone = MaskedVisionTransformerTIMM(vit=VisionTransformer(**size, **vit))
        self.keep = keep

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        length = self.backbone.sequence_length
        self.idx_keep, self.idx_mask = utils.random_token_mask(size=(4, length), mask_ratio=0.75)
        given = {"idx_keep": self.idx_keep} if self.keep else {"idx_mask": self.idx_mask}
        return self.backbone.encode(images=batch[0][0], **given).square().mean()


@pytest.mark.parametrize("keep", [False, True], ids=["simmim", "mae"])
@pytest.mark.parametrize(
    "vit",
    [
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 4},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 4},
    ],
    ids=["none", "cls and registers", "registers"],
)
def test_any_number_of_prefix_tokens(vit: dict, keep: bool) -> None:
    """lightly's mask function keeps token 0 only: registers are removed like patches."""
    torch.manual_seed(0)
    model = wrap(Prefixed(keep, **vit), regularizers=[UniformityLoss(1.0, token="mean")])
    logged = quiet(model)
    images = next(iter(loader()))[0][0]
    model.training_step(([images],), 0)
    length = model.backbone.sequence_length
    given = {"idx_keep": model.idx_keep} if keep else {"idx_mask": model.idx_mask}
    latent = model.backbone.encode(images, **given)
    features = []
    for row, ids in zip(latent, model.idx_keep.tolist(), strict=True):
        order = ids if keep else range(length)  # of the tokens that the encoder returns
        visible = [t for t, i in zip(row, order, strict=True) if i in ids and i >= length - 64]
        features.append(torch.stack(visible).mean(dim=0))
    expected = uniformity(torch.stack(features))
    assert torch.allclose(logged["loss_uniformity"], expected, atol=1e-6)
    again = Prefixed(keep, **vit)
    if not vit.get("class_token", True):
        with pytest.raises(ValueError, match="uniformity has token='cls', but the encoder has no"):
            wrap(again, regularizers=[UniformityLoss()])
        return
    model = wrap(again, regularizers=[UniformityLoss(1.0, double_norm=True)])
    logged = quiet(model)
    model.training_step(([images],), 0)
    given = {"idx_keep": model.idx_keep} if keep else {"idx_mask": model.idx_mask}
    first = model.backbone.encode(images, **given)[:, 0]
    expected = uniformity(model.backbone.vit.norm(first))
    assert torch.allclose(logged["loss_uniformity"], expected, atol=1e-6)


def test_weights_of_a_regularizer_are_trained_saved_and_resumed(tmp_path: Path) -> None:
    def wrapped() -> MAE:
        torch.manual_seed(0)
        masking = GridMasking(patch_size=4, random_shift=False)
        return wrap(MAE(), masking=masking, regularizers=[Weighted()])

    through, first = wrapped(), wrapped()
    start = copy.deepcopy(through.state_dict())
    fit(through, tmp_path, epochs=2)
    trainer = fit(first, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    resumed = wrapped()
    fit(resumed, tmp_path, epochs=2, ckpt_path=tmp_path / "first.ckpt")
    weights = through.state_dict()
    added = [key for key in weights if key.startswith("regularizers.")]
    assert sorted(set(weights) - set(make().state_dict())) == sorted(added)
    assert not torch.equal(weights[added[0]], start[added[0]])
    assert all(torch.equal(value, weights[key]) for key, value in resumed.state_dict().items())


class OwnGroups(MAE):
    """Hands over its own parameters only, with a schedule, as lightly's benchmarks do."""

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.AdamW(
            [
                {"params": self.backbone.parameters()},
                {"params": self.prediction_head.parameters(), "weight_decay": 0.0},
            ],
            lr=1e-3,
        )
        schedule = CosineWarmupScheduler(optimizer, warmup_epochs=2, max_epochs=20)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_weights_of_a_regularizer_follow_the_schedule_of_explicit_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = wrap(OwnGroups(), regularizers=[Weighted()])
    before = model.regularizers["weighted"].linear.weight.detach().clone()
    trainer = fit(model, tmp_path)
    groups = trainer.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [
        len(list(model.backbone.parameters())) + 2,
        2,
    ]
    assert groups[0]["lr"] < 1e-4
    assert not torch.equal(model.regularizers["weighted"].linear.weight, before)
    torch.manual_seed(0)
    plain = OwnGroups()
    assert len(fit(wrap(plain, masking=DPPMasking(patch_size=4)), tmp_path).optimizers) == 1


def one_cycle(optimizer: torch.optim.Optimizer) -> object:
    return lr_scheduler.OneCycleLR(optimizer, [1e-3, 1e-4], total_steps=50)


def warm_up(optimizer: torch.optim.Optimizer) -> object:
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
        lr_scheduler.CosineAnnealingLR(optimizer, 45),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [5])


def per_group(optimizer: torch.optim.Optimizer) -> object:
    return lr_scheduler.LambdaLR(optimizer, [lambda step: 0.9**step, lambda step: 1.0])


@pytest.mark.parametrize("schedule", [one_cycle, warm_up, per_group])
def test_schedules_of_the_groups_stay_stock(schedule: Callable, tmp_path: Path) -> None:
    class Scheduled(OwnGroups):
        def configure_optimizers(self) -> tuple[list, list]:
            (optimizer,), _ = super().configure_optimizers()
            return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    stock, wrapped = (
        [group["lr"] for group in fit(model, tmp_path).optimizers[0].param_groups]
        for model in (Scheduled(), wrap(Scheduled(), regularizers=[Weighted()]))
    )
    assert wrapped == stock


def test_terms_of_a_dict_are_logged_and_values_are_not_added() -> None:
    model = wrap(make(), regularizers=[Weighted(), UniformityLoss(0.1)])
    logged = quiet(model)
    batch = next(iter(loader()))
    torch.manual_seed(1)
    total = model.training_step(batch, 0)
    assert set(logged) == {
        "train_loss",
        "loss_weighted_fit",
        "weighted_twice",
        "loss_uniformity",
    }
    added = logged["train_loss"] + logged["loss_weighted_fit"] + logged["loss_uniformity"]
    assert torch.allclose(total, added, atol=1e-6)


def test_several_masks_per_image_and_a_term_of_them() -> None:
    masking = ComplementaryMasking(num_masks=4, mask_ratio=0.75, patch_size=4)
    torch.manual_seed(0)
    model = wrap(Labelled(), masking=masking, regularizers=[UniformityLoss(1.0)])
    logged = quiet(model)
    views, _, names = next(iter(loader()))
    model.training_step((views, torch.arange(4), names), 0)
    assert torch.equal(model.labels, torch.arange(4).repeat(4))
    kept = model.seen[0]
    assert kept.shape == (16, 17)
    for image in range(4):
        patches = kept.view(4, 4, 17)[:, image, 1:].flatten()
        assert torch.equal(patches.sort().values, torch.arange(1, 65))
    # pairs are of different images under the same mask
    latent = model.backbone.encode(views[0].repeat(4, 1, 1, 1), idx_keep=kept)[:, 0].view(4, 4, -1)
    cosine = torch.nn.functional.cosine_similarity(latent[:, :, None], latent[:, None], dim=3)
    assert torch.allclose(logged["loss_uniformity"], cosine.square().mean(), atol=1e-6)


def test_a_skipped_batch_stays_skipped() -> None:
    """As Lightning has it, by a training step that returns None."""

    class Skipping(MAE):
        def training_step(self, batch: tuple, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)

    model = wrap(Skipping(), regularizers=[UniformityLoss()])
    quiet(model)
    assert model.training_step(next(iter(loader())), 0) is None


def test_copy_and_pickle_keep_the_terms() -> None:
    model = wrap(make(), regularizers=[UniformityLoss(0.5)])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        logged = quiet(other)
        other.training_step(next(iter(loader())), 0)
        assert 0 < logged["loss_uniformity"] <= 0.5


def test_rejects() -> None:
    with pytest.raises(TypeError, match="Unmasked has no MaskedVisionTransformer"):
        wrap(Unmasked(), regularizers=[UniformityLoss()])
    with pytest.raises(ValueError, match="must have different names, got 'uniformity' twice"):
        wrap(make(), regularizers=[UniformityLoss(), UniformityLoss()])
    with pytest.raises(TypeError, match="regularizers must be modules with a weight, got 0.5"):
        wrap(make(), regularizers=[0.5])
    model = make()
    model.automatic_optimization = False
    with pytest.raises(ValueError, match="MAE optimizes manually: its loss is out of reach"):
        wrap(model, regularizers=[UniformityLoss()])
    model = wrap(Unencoded(), regularizers=[UniformityLoss()])
    with pytest.raises(RuntimeError, match="one encoding of masked images in each .* got 0"):
        model.training_step(next(iter(loader())), 0)


class Unencoded(MAE):
    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        return self.decoder_embed(batch[0][0].new_zeros(1, 32)).sum()
