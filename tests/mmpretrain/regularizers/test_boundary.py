"""Heads that neglect boundary pixels, on stock MAE and SimMIM."""

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmpretrain.registry import MODELS

import mim_plugins.mmpretrain  # noqa: F401

from ..models import build, train

L1 = {"type": "PixelReconstructionLoss", "criterion": "L1", "channel": 3}
L2 = {"type": "PixelReconstructionLoss", "criterion": "L2"}


def mae_head(kind: str = "BoundaryMAEHead", **arguments: object) -> torch.nn.Module:
    return MODELS.build({"type": kind, "patch_size": 8, "loss": L2} | arguments)


def simmim_head(kind: str = "BoundarySimMIMHead", **arguments: object) -> torch.nn.Module:
    return MODELS.build({"type": kind, "patch_size": 4, "loss": L1} | arguments)


def mae_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mask = (torch.rand(2, 64) < 0.75).float()
    return torch.randn(2, 64, 192), torch.randn(2, 3, 64, 64), mask


def simmim_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    units = (torch.rand(2, 2, 2) < 0.6).float()
    units[:, 0, 0] = 1  # something is masked
    mask = units.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64), mask


@pytest.mark.parametrize("norm_pix", [False, True])
def test_mae_is_the_mean_over_pixels_that_count(norm_pix: bool) -> None:
    prediction, images, mask = mae_case()
    head = mae_head(width_px=2, norm_pix=norm_pix)
    loss = head.loss(prediction, images, mask)
    # In float64, pixel by pixel on images.
    pixels = mask.view(2, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    target = head.unpatchify(head.construct_target(images)).double()
    error = (head.unpatchify(prediction).double() - target) ** 2
    total = count = 0.0
    for image in range(2):
        for y in range(64):
            for x in range(64):
                square = pixels[image, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
                if square.all():
                    total += error[image, :, y, x].sum().item()
                    count += 3
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_simmim_is_the_mean_over_pixels_that_count() -> None:
    prediction, images, mask = simmim_case()
    loss = simmim_head(width_px=3).loss(prediction, images, mask)
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
    error = (prediction.double() - images.double()).abs()
    total = count = 0.0
    for image in range(2):
        for y in range(64):
            for x in range(64):
                square = pixels[image, max(0, y - 3) : y + 4, max(0, x - 3) : x + 4]
                if square.all():
                    total += error[image, :, y, x].sum().item()
                    count += 3
    assert 0 < count < 3 * pixels.sum()
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("case", ["mae", "simmim"])
def test_neutral_is_stock(case: str) -> None:
    make, example, stock_name = {
        "mae": (mae_head, mae_case, "MAEPretrainHead"),
        "simmim": (simmim_head, simmim_case, "SimMIMHead"),
    }[case]
    stock = make(stock_name).loss(*example())
    assert torch.equal(make(width_px=0).loss(*example()), stock)
    # Boundary pixels of full weight: the same mean, summed in another order.
    torch.testing.assert_close(make(width_px=3, boundary_weight=1.0).loss(*example()), stock)
    assert not torch.allclose(make(width_px=3).loss(*example()), stock)


def test_training_with_width_0_is_stock_bit_for_bit() -> None:
    head = {"patch_size": 8, "norm_pix": True, "loss": L2}
    stock = build("MAEViT", {"head": {"type": "MAEPretrainHead"} | head})
    ours = build("MAEViT", {"head": {"type": "BoundaryMAEHead", "width_px": 0} | head})
    assert train(stock, 5) == train(ours, 5)
    assert list(stock.state_dict()) == list(ours.state_dict())
    losses = train(build("MAEViT", {"head": {"type": "BoundaryMAEHead", "width_px": 2} | head}))
    assert losses[-1] < losses[0]


def test_boundary_pixels_get_no_gradient() -> None:
    prediction, images, mask = mae_case()
    prediction.requires_grad_()
    head = mae_head(width_px=1)
    head.loss(prediction, images, mask).backward()
    gradient = head.unpatchify(prediction.grad)
    pixels = mask.view(2, 8, 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    counted = (gradient != 0).any(dim=1)
    assert (counted <= pixels.bool()).all()
    assert 0.6 < counted.sum() / pixels.sum() < 0.95


def test_masks_without_interior_give_a_finite_loss() -> None:
    prediction, images, _ = mae_case()
    prediction.requires_grad_()
    checkerboard = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    loss = mae_head(width_px=8).loss(prediction, images, checkerboard.flatten().expand(2, 64))
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad.abs().max() == 0


@pytest.mark.parametrize("make", [mae_head, simmim_head])
def test_bad_arguments(make) -> None:
    with pytest.raises(ValueError, match="width_px"):
        make(width_px=-1)
    with pytest.raises(ValueError, match="boundary_weight"):
        make(boundary_weight=2.0)
    with pytest.raises(TypeError, match="PixelReconstructionLoss"):
        make(loss={"type": "CosineSimilarityLoss"})
