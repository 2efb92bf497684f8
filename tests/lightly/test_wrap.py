"""wrap() on modules shaped like lightly's, under Lightning's own Trainer."""

import collections
import copy
import dataclasses
import functools
import pickle
import threading
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import pytorch_lightning as pl
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.utils import random_token_mask
from timm.models.vision_transformer import VisionTransformer

from mim_plugins.lightly import wrap
from mim_plugins.masking import (
    ComplementaryMasking,
    DPPMasking,
    GridMasking,
    Masking,
    RandomMasking,
)
from mim_plugins.mixing import MixMask
from mim_plugins.regularizers import UniformityLoss

from ..warm import run_script
from .modules import MAE, BlockMasked, Unmasked

STOCK = utils.random_token_mask


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


def quiet(model: Any) -> Any:
    """For steps without a Trainer."""
    model.log = lambda *args, **kwargs: None
    return model


def test_dpp_masks_reach_encoder_and_target() -> None:
    model = wrap(make(), masking=DPPMasking(patch_size=4, tau=0.0))
    quiet(model)
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
    assert type(model) is MAE
    assert type(make()) is MAE
    strict = make()
    strict.load_state_dict(model.state_dict(), strict=True)


class Derived(MAE):
    """Overrides the method that draws the masks and calls it through ``super()``."""

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        self.label = batch[1]
        return super().training_step(batch, batch_idx)


class ByName(MAE):
    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        return MAE.training_step(self, batch, batch_idx)


class Given(MAE):
    """Has its masks drawn by ``self.draw``."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        images = batch[0][0]
        idx_keep, _ = self.draw(len(images), self.sequence_length)
        self.seen.append(idx_keep)
        stock = super().training_step(batch, batch_idx)
        return stock + self.backbone.encode(images=images, idx_keep=idx_keep).mean()


def helper(number: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return random_token_mask((number, length), mask_ratio=0.75)


@pytest.mark.parametrize("make", [Derived, ByName, lambda: Given(helper)])
def test_masks_are_reached_wherever_they_are_drawn(make: Any) -> None:
    """By ``super()``, by the name of a class, in a function outside that imported it by name."""
    model = quiet(wrap(make(), masking=GridMasking(random_shift=False)))
    model.training_step(next(iter(loader())), 0)
    assert all(torch.equal(seen, model.seen[0][:1].expand_as(seen)) for seen in model.seen)


def test_masks_out_of_reach_are_no_secret() -> None:
    """Alone, or beside others that are in reach."""
    stock = functools.partial(random_token_mask, mask_ratio=0.75)
    model = quiet(wrap(Given(lambda number, length: stock((number, length))), masking=DPPMasking()))
    message = "the training step of Given encodes images with masks that wrap.. did not draw"
    with pytest.raises(RuntimeError, match=message):
        model.training_step(next(iter(loader())), 0)
    assert utils.random_token_mask is random_token_mask is STOCK


class Picky(MAE):
    """Leaves a batch out whose first label is 0, or encodes it as it is."""

    whole = False

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor | None:
        if batch[1][0] != 0:
            return super().training_step(batch, batch_idx)
        return self.backbone.encode(images=batch[0][0]).mean() if self.whole else None


def test_a_batch_left_out_before_masks_are_drawn_is_no_fault() -> None:
    model, images = quiet(wrap(Picky(), masking=DPPMasking())), torch.rand(2, 3, 32, 32)
    assert model.training_step(([images], torch.tensor([0, 1])), 0) is None
    assert model.training_step(([images], torch.tensor([1, 1])), 1).isfinite()
    assert len(model.seen) == 1
    model = quiet(wrap(Picky(), masking=DPPMasking()))
    model.whole = True
    with pytest.raises(RuntimeError, match="training step of Picky drew none of its masks"):
        model.training_step(([images], torch.tensor([0, 1])), 0)


class Late(MAE):
    """Draws masks for its first batch, then leaves it out; later ones are encoded mirrored."""

    steps = 0

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor | None:
        self.steps += 1
        if self.steps > 1:
            return super().training_step(([batch[0][0].flip(3)],), batch_idx)
        utils.random_token_mask((2, self.sequence_length), mask_ratio=0.75)
        return None


def test_a_batch_left_out_after_masks_are_drawn_ends_no_check() -> None:
    model, images = quiet(wrap(Late(), masking=DPPMasking())), torch.rand(2, 3, 32, 32)
    assert model.training_step(([images],), 0) is None
    with pytest.raises(RuntimeError, match="encodes other images than those its masks"):
        model.training_step(([images],), 1)


class Augmented(MAE):
    """Changes its images in the step, or takes those that ``get`` finds."""

    def __init__(self, get: Any) -> None:
        super().__init__()
        self.get = get

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(([self.get(batch)],), batch_idx)


X, Y = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
Photo = collections.namedtuple("Photo", "label image")


@dataclasses.dataclass
class Sample:
    image: torch.Tensor
    names: list[str]


@pytest.mark.parametrize(
    ("get", "batch"),
    [
        (lambda batch: batch[0].flip(3), (X, Y)),
        (lambda batch: batch[0] + 0.01, [X]),
        (lambda batch: batch[0][1], ([X, Y],)),
    ],
)
def test_masks_belong_to_the_images_that_are_encoded(get: Any, batch: Any) -> None:
    """An augmentation in the step or another view: a clear no in the first step."""
    model = quiet(wrap(Augmented(get), masking=DPPMasking()))
    with pytest.raises(RuntimeError, match="encodes other images than those its masks were drawn"):
        model.training_step(batch, 0)
    model = quiet(wrap(Augmented(get), masking=RandomMasking()))  # does not look at them
    model.training_step(batch, 0)


@pytest.mark.parametrize(
    ("get", "batch", "images"),
    [
        (lambda batch: batch, X, None),
        (lambda batch: batch[0], (X, 1, {"names": ["a"] * 4}), None),
        (lambda batch: batch["image"], {"image": X, "label": [0] * 4}, None),
        (lambda batch: batch["photo"], {"photo": X}, "photo"),
        (lambda batch: batch["image"], collections.defaultdict(list, image=X), None),
        (lambda batch: batch.image, Photo(0, X), "image"),
        (lambda batch: batch.image, Sample(X, ["a"] * 4), lambda batch: batch.image),
        (lambda batch: batch[0][1], ([Y, X], None), lambda batch: batch[0][1]),
        (lambda batch: batch[0][0].clone(), ([X, Y[:, :, ::2, ::2]],), None),
        (lambda batch: batch[0].flip(3), (Y,), lambda batch: X),
    ],
)
@pytest.mark.parametrize("num_masks", [1, 4])
def test_batches_as_people_have_them(get: Any, batch: Any, images: Any, num_masks: int) -> None:
    if callable(images) and isinstance(batch, tuple) and batch[0] is Y:
        batch = (X.flip(3),)  # the getter may repeat what the step does
        images = lambda batch: batch[0].flip(3)  # noqa: E731
    masking: Masking = DPPMasking(tau=0.0)
    if num_masks > 1:
        masking = ComplementaryMasking(num_masks, base=masking)
    model = quiet(wrap(Augmented(get), masking=masking, images=images))
    torch.manual_seed(5)
    model.training_step(batch, 0)
    torch.manual_seed(5)
    noise = torch.rand(4, 65)[:, 1:]
    expected = masking(X, mask_ratio=0.75, patch_size=4, noise=noise)
    assert torch.equal(model.seen[0][:, 1:] - 1, expected.ids_keep)
    for name in ("validation_step", "test_step"):
        assert name not in vars(model)


def test_a_batch_that_cannot_be_repeated_is_no_secret() -> None:
    """Several masks of each image need it as often: masks of others would be its."""
    masking = ComplementaryMasking(4)
    get = lambda batch: batch.image  # noqa: E731
    model = quiet(wrap(Augmented(get), masking=masking, images=get))
    with pytest.raises(RuntimeError, match="needs its images 4 times, .* of SimpleNamespace"):
        model.training_step(types.SimpleNamespace(image=X), 0)


@pytest.mark.parametrize("shape", [(4, 64), (4, 8, 8)])
@pytest.mark.parametrize("where", ["mask", lambda batch: batch["mask"]])
def test_masks_that_come_with_the_data(shape: tuple[int, ...], where: Any) -> None:
    masking = RandomMasking()
    mask = masking(X, mask_ratio=0.5, patch_size=4)
    model = quiet(wrap(Augmented(lambda batch: batch["image"]), masking=where))
    model.training_step({"image": X, "mask": mask.mask.view(shape).to(torch.uint8)}, 0)
    assert torch.equal(model.seen[0][:, 1:] - 1, mask.ids_keep.sort(dim=1).values)
    with pytest.raises(
        ValueError, match="must be the masks of 4 images of 64 patches in the batch"
    ):
        model.training_step({"image": X, "mask": mask.mask[:, 1:]}, 0)
    with pytest.raises(
        (KeyError, ValueError),
        match=r"masking='mask' is not in a batch: a dict of \['image'",
    ):
        quiet(wrap(Augmented(lambda batch: X), masking="mask")).training_step({"image": X}, 0)


def test_ratio_schedule() -> None:
    """A ratio that the module changes holds; one that the masking has too must be the same."""
    model = quiet(wrap(make(), masking=DPPMasking()))
    for ratio in (0.75, 0.5, 0.9):
        model.mask_ratio = ratio
        model.training_step(next(iter(loader())), 0)
        assert model.seen[-1].shape[1] == 1 + int(64 * (1 - ratio))
    model = quiet(wrap(make(), masking=DPPMasking(mask_ratio=0.75)))
    model.mask_ratio = 0.5
    with pytest.raises(ValueError, match="mask_ratio is 0.75 in the masking and 0.5 in what uses"):
        model.training_step(next(iter(loader())), 0)


class Prefixed(MAE):
    """An encoder with other prefix tokens, and another mask function."""

    def __init__(self, function: str, **vit: Any) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=32, patch_size=4, embed_dim=32, depth=1, num_heads=2, num_classes=0, **vit
        )
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.function = function
        self.num_prefix_tokens = vit.num_prefix_tokens

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        size = (len(batch[0]), self.backbone.sequence_length)
        if self.function == "random_token_mask":
            masks = utils.random_token_mask(size, mask_ratio=0.75)
        elif self.function == "random_grid_token_mask":
            masks = utils.random_grid_token_mask(size, 0.75, 2, self.num_prefix_tokens)
        else:
            masks = utils.random_inverse_block_mask(size, 0.65, self.num_prefix_tokens)
        self.masks = masks
        return self.backbone.encode(images=batch[0], idx_keep=masks[0]).mean()


@pytest.mark.parametrize(
    "function", ["random_token_mask", "random_grid_token_mask", "random_inverse_block_mask"]
)
@pytest.mark.parametrize(
    ("vit", "prefix"),
    [({}, 1), ({"reg_tokens": 4}, 5), ({"class_token": False, "global_pool": "avg"}, 0)],
)
def test_every_function_and_any_number_of_prefix_tokens(
    function: str, vit: dict, prefix: int
) -> None:
    masking = DPPMasking(tau=0.0)
    model = quiet(wrap(Prefixed(function, **vit), masking=masking))
    torch.manual_seed(5)
    model.training_step((X,), 0)
    keep, mask = model.masks
    assert torch.equal(torch.cat([keep, mask], 1).sort(1).values[0], torch.arange(64 + prefix))
    assert torch.equal(keep[:, :prefix], torch.arange(prefix).expand(4, -1))
    torch.manual_seed(5)
    if function == "random_grid_token_mask":
        expected = DPPMasking(tau=0.0, mask_unit=8)(X, mask_ratio=0.75, patch_size=4)
    elif function == "random_token_mask":
        noise = torch.rand(4, 64 + prefix)[:, prefix:]
        expected = masking(X, mask_ratio=0.75, patch_size=4, noise=noise)
    else:
        noise = torch.rand(4, 64 + prefix)[:, prefix:]
        expected = masking(X, mask_ratio=0.65, patch_size=4, noise=noise)
    assert torch.equal(keep[:, prefix:] - prefix, expected.ids_keep)


def test_wrap_twice_is_once() -> None:
    masking, term = DPPMasking(tau=0.0), UniformityLoss(weight=0.5)
    once = wrap(make(), masking=masking, regularizers=[term])
    twice = wrap(wrap(make(), masking=masking), regularizers=[UniformityLoss(weight=0.5)])
    losses = []
    for model in (once, twice, make()):
        quiet(model)
        torch.manual_seed(3)
        losses.append(model.training_step(next(iter(loader())), 0).item())
    assert losses[0] == losses[1] != losses[2]
    assert "masking=DPPMasking(" in repr(once)
    assert "UniformityLoss" in repr(once)
    assert "mim_plugins" not in repr(make())
    for again in ({"masking": masking}, {"regularizers": [term]}):
        with pytest.raises(ValueError, match=f"model is wrapped already, with {next(iter(again))}"):
            wrap(twice, **again)


class MaskedSiamese(pl.LightningModule):
    """Compares two masked views."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = MAE().backbone
        self.criterion = NegativeCosineSimilarity()
        self.mask_ratio = 0.5

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        latents = []
        for view in batch[0]:
            keep, _ = utils.random_token_mask((len(view), 65), self.mask_ratio)
            latents.append(self.backbone(images=view, idx_keep=keep))
        return self.criterion(latents[0], latents[1])


def test_masking_and_mixing() -> None:
    """Each view has its own masks, the mixed ones too."""
    model = quiet(wrap(wrap(MaskedSiamese(), masking=DPPMasking(tau=0.0)), mixing=MixMask()))
    encoded = []
    stock = model.backbone.encode

    def encode(images: torch.Tensor, **masks: Any) -> torch.Tensor:
        encoded.append((images.detach(), masks["idx_keep"]))
        return stock(images=images, **masks)

    model.backbone.encode = encode
    model.training_step(([X, Y], None), 0).backward()
    assert len(encoded) >= 4
    assert torch.equal(encoded[0][0], X)
    assert torch.equal(encoded[1][0], Y)
    assert not torch.equal(encoded[2][0], X), "a mixed view"
    # Greedy choice depends on the images but for its first, random patch.
    for images, keep in encoded:
        noise = torch.ones(4, 64).scatter(1, keep[:, 1:2] - 1, 0.0)
        expected = DPPMasking(tau=0.0)(images, mask_ratio=0.5, patch_size=4, noise=noise)
        assert torch.equal(keep[:, 1:] - 1, expected.ids_keep)


def test_other_threads_see_stock_lightly() -> None:
    """While a step of a wrapped model runs, others of their own masks or none run beside it."""
    batch = next(iter(loader()))
    grid = quiet(wrap(make(), masking=GridMasking(random_shift=False)))
    other = quiet(wrap(make(), masking=DPPMasking(tau=0.0)))
    stock = quiet(make())
    run = {}

    def aside(model: MAE, name: str) -> None:
        thread = threading.Thread(target=lambda: model.training_step(batch, 0))
        thread.start()
        thread.join()
        run[name] = model.seen[-1]

    encode = grid.backbone.encode

    def meanwhile(**given: Any) -> torch.Tensor:
        if not run:
            aside(other, "other")
            aside(stock, "stock")
        return encode(**given)

    grid.backbone.encode = meanwhile
    grid.training_step(batch, 0)
    assert utils.random_token_mask is STOCK
    assert (grid.seen[0] == grid.seen[0][:1]).all()
    for kept in run.values():
        assert not (kept == kept[:1]).all()
    noise = torch.ones(4, 64).scatter(1, run["other"][:, 1:2] - 1, 0.0)
    expected = DPPMasking(tau=0.0)(batch[0][0], mask_ratio=0.75, patch_size=4, noise=noise)
    assert torch.equal(run["other"][:, 1:] - 1, expected.ids_keep)


@pytest.mark.slow
def test_compiled() -> None:
    """The stock step is compiled, with the masks of the plugin in it."""
    batch = next(iter(loader()))
    losses = []
    for compiled in (False, True):
        model = quiet(wrap(make(), masking=DPPMasking(tau=0.0)))
        step = (
            torch.compile(model.training_step, backend="eager")
            if compiled
            else (model.training_step)
        )
        torch.manual_seed(3)
        losses.append([step(batch, index).item() for index in range(2)])
    assert losses[0] == losses[1]


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
    assert "validation_step" not in vars(wrap(MAE(), masking=masking))


def test_two_models_do_not_share_their_masks() -> None:
    stock, one, other = make(), make(), make()
    wrap(one, masking=DPPMasking(patch_size=4, tau=0.0))
    wrap(other, masking=GridMasking(patch_size=4, random_shift=False))
    batch = next(iter(loader()))
    for model in (stock, one, other):
        quiet(model)
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
    model = wrap(BlockMasked(), masking=DPPMasking(mask_ratio=0.7, tau=0.5))
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
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    code, output = run_script(script, strategy, tmp_path / "weights.pt", env=env)
    assert code == 0, output[-3000:]
    assert "world size 2" in output
    trained = torch.load(tmp_path / "weights.pt")
    pl.seed_everything(0, verbose=False)
    model = MAE()
    before = model.prediction_head.weight.detach().clone()
    assert not torch.equal(trained["prediction_head.weight"], before)
    model.load_state_dict(trained, strict=True)


def test_rejects() -> None:
    with pytest.raises(ValueError, match="mask_ratio is 0.5 in the masking and 0.75 in what uses"):
        wrap(make(), masking=DPPMasking(mask_ratio=0.5))
    with pytest.raises(ValueError, match="patch_size is 16 in the masking and 4 in what uses it"):
        wrap(make(), masking=DPPMasking(patch_size=16))
    with pytest.raises(
        TypeError, match="Unmasked calls none of random_token_mask, random_grid_tok"
    ):
        wrap(Unmasked(), masking=DPPMasking())
    with pytest.raises(ValueError, match="needs masking, regularizers, mixing or unmix, got None"):
        wrap(make(), images="image")
    with pytest.raises(
        TypeError, match="must be a pytorch_lightning.LightningModule, .* got torch"
    ):
        wrap(torch.compile(make(), backend="eager"), masking=DPPMasking())
    with pytest.raises(
        TypeError, match="masking must be a mim_plugins.masking.Masking, .* got 0.5"
    ):
        wrap(make(), masking=0.5)
    with pytest.raises(TypeError, match="images must be a key, an index, a function or None, got"):
        wrap(make(), masking=DPPMasking(), images=0.5)
    model = make()
    model.training_step = lambda batch, batch_idx: None
    with pytest.raises(ValueError, match="model has its own training_step beside those of MAE"):
        wrap(model, masking=DPPMasking())
    with pytest.raises(ValueError, match="several masks per image cannot stand beside them"):
        wrap(MaskedSiamese(), masking=ComplementaryMasking(2, mask_ratio=0.5), mixing=MixMask())
    model = quiet(wrap(make(), masking=DPPMasking()))
    with pytest.raises(
        ValueError, match="masks for 4 images of 64 patches were asked for, but the"
    ):
        model.training_step(([torch.rand(4, 3, 30, 30)],), 0)
    assert utils.random_token_mask is STOCK
    with pytest.raises(
        TypeError, match=r"a batch must hold image tensors, got a dict of \['photo'"
    ):
        quiet(wrap(Augmented(lambda batch: X), masking=DPPMasking())).training_step({"photo": X}, 0)
