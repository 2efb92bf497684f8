"""lightly's criteria without boundary pixels, in modules of lightly's own shape."""

import copy
import pickle

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import pytorch_lightning as pl
import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTorchvision
from torch import nn
from torchvision.models import VisionTransformer

from mim_plugins.lightly import BoundaryCriterion, wrap
from mim_plugins.masking import DPPMasking

from ..modules import MAE, BlockMasked


class SimMIM(pl.LightningModule):
    """lightly's SimMIM example, small: torchvision's ViT, masks known to the encoder."""

    def __init__(self) -> None:
        super().__init__()
        vit = VisionTransformer(
            image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64
        )
        self.patch_size = 8
        self.sequence_length = vit.seq_length
        self.backbone = MaskedVisionTransformerTorchvision(vit=vit)
        self.decoder = nn.Linear(32, 8 * 8 * 3)
        self.criterion = nn.L1Loss()

    def training_step(self, batch: tuple, batch_idx: int) -> torch.Tensor:
        images = batch[0][0]
        _, self.idx_mask = utils.random_token_mask(
            size=(len(images), self.sequence_length), mask_ratio=0.75, device=images.device
        )
        encoded = self.backbone.encode(images=images, idx_mask=self.idx_mask)
        self.prediction = self.decoder(utils.get_at_index(encoded, self.idx_mask))
        patches = utils.patchify(images, self.patch_size)
        target = utils.get_at_index(patches, self.idx_mask - 1)
        return self.criterion(self.prediction, target)


def batch() -> tuple:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [images], torch.zeros(4).long(), ["a"] * 4


def step(model: pl.LightningModule, seed: int = 3) -> torch.Tensor:
    model.log = lambda *args, **kwargs: None  # outside a Trainer
    torch.manual_seed(seed)
    return model.training_step(batch(), 0)


def build(kind: type, width: int | None = None, **arguments: object) -> pl.LightningModule:
    torch.manual_seed(0)
    model = kind()
    if width is not None:
        model.criterion = BoundaryCriterion(model, width, **arguments)
    return model


@pytest.mark.parametrize("kind", [MAE, SimMIM])
def test_neutral_is_stock(kind: type) -> None:
    stock = build(kind)
    assert torch.equal(step(build(kind, 0)), step(stock))
    torch.testing.assert_close(step(build(kind, 1, boundary_weight=1.0)), step(stock))
    model = build(kind, 1)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert not torch.allclose(step(model), step(stock))


def test_simmim_is_the_mean_over_pixels_that_count() -> None:
    model = build(SimMIM, 2)
    loss = step(model)
    images = batch()[0][0].double()
    mask = torch.zeros(4, 16).bool().scatter(1, model.idx_mask - 1, True).view(4, 4, 4)
    pixels = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)
    patches = torch.zeros(4, 16, 192, dtype=torch.float64)
    index = (model.idx_mask - 1)[..., None].expand(-1, -1, 192)
    patches = patches.scatter(1, index, model.prediction.detach().double())
    error = (utils.unpatchify(patches, 8) - images).abs()
    total = count = 0.0
    for image in range(4):
        for y in range(32):
            for x in range(32):
                if pixels[image, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].all():
                    total += error[image, :, y, x].sum().item()
                    count += 3
    assert 0 < count < 3 * pixels.sum()
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_mae_predicts_boundary_pixels_without_gradient() -> None:
    """Through the prediction head's bias: it is moved by interior pixels only."""
    torch.manual_seed(0)
    model = MAE()
    kept: list[torch.Tensor] = []
    model.prediction_head.register_forward_hook(
        lambda m, a, out: out.retain_grad() or kept.append(out)
    )
    model.criterion = BoundaryCriterion(model, 1)
    step(model).backward()
    idx_keep = model.seen[0]
    mask = torch.ones(4, 65).bool().scatter(1, idx_keep, False)[:, 1:].view(4, 8, 8)
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
    inner = torch.ones_like(pixels)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            shifted = torch.ones(4, 34, 34).bool()
            shifted[:, 1 + dy : 33 + dy, 1 + dx : 33 + dx] = pixels
            inner &= shifted[:, 1:33, 1:33]
    moved = (kept[0].grad != 0).sum()
    assert moved == 3 * inner.sum()


def test_copies_and_pickles_watch_their_own_encoder() -> None:
    model = build(MAE, 1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.backbone.preprocess.encoder is other.backbone
        assert torch.equal(step(other), step(model))


def test_with_dpp_masks_in_a_trainer() -> None:
    model = wrap(build(MAE, 1), masking=DPPMasking(patch_size=4))
    loader = torch.utils.data.DataLoader([batch()[0][0][0]] * 8, batch_size=4)
    loader.collate_fn = lambda images: ([torch.stack(images)], torch.zeros(4), ["a"] * 4)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, loader)
    assert trainer.global_step == 4
    assert trainer.callback_metrics["train_loss"].isfinite()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="width_px"):
        build(MAE, -1)
    with pytest.raises(TypeError, match="criterion"):
        build(BlockMasked, 1)
    model = build(MAE, 1)
    with pytest.raises(RuntimeError, match="saw no masks"):
        model.criterion(torch.rand(1, 2, 48), torch.rand(1, 2, 48))
