"""Features of the neck, and of masked images."""

from types import SimpleNamespace

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from mim_plugins.mmpretrain.analysis.features import extract_features

VIT = {"embed_dims": 8, "num_layers": 1, "num_heads": 2, "feedforward_channels": 16}


def runner(config: dict) -> SimpleNamespace:
    init_default_scope("mmpretrain")
    return SimpleNamespace(model=MODELS.build(config), optim_wrapper=None)


def test_projection_is_what_the_neck_gives() -> None:
    resnet = {"type": "ResNet_CIFAR", "depth": 18, "base_channels": 4, "stem_channels": 4}
    moco = runner(
        {
            "type": "MoCo", "queue_len": 8, "feat_dim": 4, "momentum": 0.01,
            "backbone": resnet,
            "neck": {"type": "LinearNeck", "in_channels": 32, "out_channels": 4, "gap_dim": 2},
            "head": {
                "type": "ContrastiveHead", "loss": {"type": "CrossEntropyLoss"}, "temperature": 0.1
            },
        }
    )  # fmt: skip
    images = torch.rand(3, 3, 16, 16)
    found = extract_features(moco, images, projection=True)
    model = moco.model.eval()
    with torch.no_grad():
        expected = model.neck(model.backbone(images))[0]
    assert found.shape == (3, 4)
    assert torch.equal(found, expected)
    assert extract_features(moco, images).shape == (3, 32)
    with pytest.raises(TypeError, match="needs a backbone of MAE, which draws masks, got ResNet"):
        extract_features(moco, images, masked=True)


def test_masked_is_the_class_token_of_the_visible_patches() -> None:
    backbone = {"type": "MAEViT", "arch": VIT, "img_size": 16, "patch_size": 4}
    neck = {
        "type": "MAEPretrainDecoder", "num_patches": 16, "patch_size": 4, "embed_dim": 8,
        "decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2,
    }  # fmt: skip
    loss = {"type": "PixelReconstructionLoss", "criterion": "L2"}
    head = {"type": "MAEPretrainHead", "patch_size": 4, "loss": loss}
    mae = runner({"type": "MAE", "backbone": backbone, "neck": neck, "head": head})
    mae.model.init_weights()
    images = torch.rand(2, 3, 16, 16)
    torch.manual_seed(0)
    found = extract_features(mae, images, masked=True)
    torch.manual_seed(0)
    with torch.no_grad():
        latent = mae.model.eval().backbone(images)[0]
    assert torch.equal(found, latent[:, 0])
    assert not torch.equal(found, extract_features(mae, images))
