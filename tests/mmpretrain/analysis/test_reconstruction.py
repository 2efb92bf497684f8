"""Pixels that stock algorithms reconstruct."""

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmpretrain.registry import MODELS
from torch import nn

from mim_plugins.mmpretrain import reconstruct

from ..models import build

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PREPROCESSOR = {"type": "SelfSupDataPreprocessor", "mean": MEAN, "std": STD, "to_rgb": True}
SWIN = {
    "type": "SimMIMSwinTransformer",
    "arch": {"embed_dims": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
    "img_size": 64,
    "stage_cfgs": {"block_cfgs": {"window_size": 2}},
}
HIVIT = {"embed_dims": 32, "depths": [1, 1, 2], "num_heads": 2}


def mae(backbone: str = "MAEViT", **arguments: object) -> nn.Module:
    return build(backbone, {"data_preprocessor": PREPROCESSOR}, **arguments).eval()


def simmim() -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(
        {
            "type": "SimMIM",
            "data_preprocessor": PREPROCESSOR,
            "backbone": SWIN,
            "neck": {"type": "SimMIMLinearDecoder", "in_channels": 128, "encoder_stride": 32},
            "head": {
                "type": "SimMIMHead",
                "patch_size": 4,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L1", "channel": 3},
            },
        }
    ).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 64, 64), generator=generator).float()


def preprocess(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    bgr = pixels.flip(1)  # as LoadImageFromFile loads them
    return model.data_preprocessor({"inputs": bgr, "data_samples": None})["inputs"]


class Oracle(nn.Module):
    """A decoder that knows the answer."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return self.answer


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_perfect_answer_is_the_image(
    norm_pix: bool, masked: bool, pixels: torch.Tensor
) -> None:
    model = mae()
    inputs = preprocess(model, pixels)
    model.head.norm_pix = norm_pix
    model.neck = Oracle(model.head.construct_target(inputs))
    predicted, images = reconstruct(model, inputs, masked=masked)
    torch.testing.assert_close(images, pixels / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(predicted, pixels / 255, atol=1e-5, rtol=0)


def test_all_visible_uses_no_mask_and_no_random_numbers(pixels: torch.Tensor) -> None:
    model = mae()
    inputs = preprocess(model, pixels)
    state = torch.get_rng_state()
    predicted, _ = reconstruct(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    # Independent way: the stock masked forward at a ratio that removes nothing.
    model.backbone.mask_ratio = 0.0
    latent, mask, ids_restore = model.backbone(inputs)
    assert mask.sum() == 0
    patches = model.neck(latent, ids_restore)
    own = model.head.patchify(inputs)
    patches = patches * (own.var(-1, keepdim=True) + 1e-6).sqrt() + own.mean(-1, keepdim=True)
    expected = model.head.unpatchify(patches).detach()
    std, mean = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    torch.testing.assert_close(predicted, (expected * std + mean) / 255, atol=1e-4, rtol=1e-4)


def test_masked_keeps_visible_patches(pixels: torch.Tensor) -> None:
    model = mae()
    inputs = preprocess(model, pixels)
    torch.manual_seed(3)
    predicted, images = reconstruct(model, inputs, masked=True)
    torch.manual_seed(3)
    mask = model.backbone(inputs)[1].bool().view(3, 8, 8)
    mask = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(images)
    assert torch.equal(predicted[~mask], images[~mask])
    assert (predicted[mask] != images[mask]).all()


@pytest.mark.parametrize("name", ["MaskedMAEViT", "MAEHiViT", "MaskedMAEHiViT"])
def test_other_backbones(name: str, pixels: torch.Tensor) -> None:
    if "HiViT" in name:
        model = mae()
        model.backbone = MODELS.build(
            {"type": name, "arch": HIVIT, "img_size": 64, "patch_size": 16}
        )
        model.eval()
        model.head.patch_size = 16
        model.neck = Oracle(model.head.construct_target(preprocess(model, pixels)))
    else:
        model = mae(name)
    state, ratio = torch.get_rng_state(), model.backbone.mask_ratio
    predicted, images = reconstruct(model, preprocess(model, pixels))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.backbone.mask_ratio == ratio == 0.75
    assert "masking_id" not in vars(model.backbone)
    assert predicted.shape == images.shape == (3, 3, 64, 64)
    assert predicted.isfinite().all()


def test_all_visible_hivit_gives_all_tokens_in_order(pixels: torch.Tensor) -> None:
    """Independent way: the stock masked forward at a ratio that removes nothing."""
    torch.manual_seed(0)
    backbone = MODELS.build({"type": "MAEHiViT", "arch": HIVIT, "img_size": 64, "patch_size": 16})
    backbone.eval()
    kept: list[tuple] = []
    model = mae()
    model.backbone, model.head.patch_size = backbone, 16
    inputs = preprocess(model, pixels)
    model.neck = Oracle(model.head.construct_target(inputs))
    model.neck.register_forward_hook(lambda m, args, out: kept.append(args))
    reconstruct(model, inputs)
    latent, ids_restore = kept[0]
    backbone.mask_ratio = 0.0
    stock, _, stock_restore = backbone(inputs)
    order = stock_restore[..., None].expand_as(stock)
    torch.testing.assert_close(latent, stock.gather(1, order), atol=1e-5, rtol=1e-4)
    assert torch.equal(ids_restore, torch.arange(16).expand(3, 16))


def test_several_masks_per_image(pixels: torch.Tensor) -> None:
    model = mae("MaskedMAEViT", masking={"type": "ComplementaryMasking"})
    inputs = preprocess(model, pixels)
    torch.manual_seed(3)
    predicted, images = reconstruct(model, inputs, masked=True)
    torch.manual_seed(3)
    first = model.backbone(inputs)[1][:3].bool().view(3, 1, 8, 8)
    removed = first.repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(images)
    assert torch.equal(predicted[~removed], images[~removed])
    assert (predicted[removed] != images[removed]).all()


@pytest.mark.parametrize("masked", [False, True])
def test_fused_features(masked: bool, pixels: torch.Tensor) -> None:
    """MFF's backbone masks whatever it is asked for, and returns its weights besides."""
    model = build(
        "MFFViT", {"type": "MFF", "data_preprocessor": PREPROCESSOR}, out_indices=[0, 1]
    ).eval()
    inputs = preprocess(model, pixels)
    torch.manual_seed(3)
    predicted, _ = reconstruct(model, inputs, masked=masked)
    torch.manual_seed(3)
    model.backbone.mask_ratio = 0.75 if masked else 0.0
    latent, mask, ids_restore, _ = model.backbone(inputs)
    patches = model.neck(latent, ids_restore)
    own = model.head.patchify(inputs)
    patches = patches * (own.var(-1, keepdim=True) + 1e-6).sqrt() + own.mean(-1, keepdim=True)
    patches = torch.where(mask[..., None].bool(), patches, own) if masked else patches
    expected = model.head.unpatchify(patches).detach()
    std, mean = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    torch.testing.assert_close(predicted, (expected * std + mean) / 255, atol=1e-4, rtol=1e-4)


def test_simmim(pixels: torch.Tensor) -> None:
    from mmpretrain.structures import DataSample

    model = simmim()
    inputs = preprocess(model, pixels)
    predicted, images = reconstruct(model, inputs)
    stock = model.neck(model.extract_feat(inputs)[-1])
    std, mean = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    torch.testing.assert_close(predicted, (stock * std + mean).detach() / 255)

    mask = torch.zeros(16, 16, dtype=torch.int64)
    mask[:8] = 1
    samples = [DataSample(mask=mask) for _ in range(3)]
    predicted, images = reconstruct(model, inputs, samples, masked=True)
    assert torch.equal(predicted[:, :, 32:], images[:, :, 32:])
    assert (predicted[:, :, :32] != images[:, :, :32]).all()
    with pytest.raises(ValueError, match="SimMIMMaskGenerator"):
        reconstruct(model, inputs, [DataSample()] * 3, masked=True)


def test_other_algorithms_are_refused() -> None:
    with pytest.raises(TypeError, match="MAE or SimMIM, got Linear"):
        reconstruct(nn.Linear(1, 1), torch.rand(1, 3, 64, 64))
    model = mae()
    model.head = nn.Linear(1, 1)
    with pytest.raises(TypeError, match="must predict pixels, got a MAE with .* and Linear"):
        reconstruct(model, torch.rand(1, 3, 64, 64))
