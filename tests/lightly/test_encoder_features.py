"""DPPMasking(features='encoder') under wrap()."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from examples_lightly.ibot_dpp import IBOT
from mim_plugins.lightly import wrap
from mim_plugins.lightly.watch import encoder_of_whole_images, patch_tokens
from mim_plugins.masking import DPPMasking

from .modules import MAE, BlockMasked
from .regularizers.test_boundary import SimMIM


def asking(**arguments: Any) -> DPPMasking:
    return DPPMasking(tau=0.0, features="encoder", **arguments)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mae(**plugins: Any) -> MAE:
    torch.manual_seed(0)
    return wrap(MAE(), **plugins) if plugins else MAE()


def kept(model: Any, images: Tensor) -> Tensor:
    """Token indices that its training step keeps."""
    model.log = lambda *_, **__: None  # there is no trainer
    torch.manual_seed(2)
    model.training_step(([images], None, None), 0)
    return model.seen[-1]


def by_hand(model: Any, images: Tensor) -> Tensor:
    """By timm's ViT with the model's weights."""
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=1, num_heads=2)
    vit.load_state_dict(model.backbone.vit.state_dict())
    vit.eval()

    def tokens(images: Tensor) -> Tensor:
        return vit.forward_features(images)[:, 1:]

    stock = mae(masking=DPPMasking(tau=0.0, features=tokens))
    return kept(stock, images)


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy])
def test_masks_are_those_of_the_encoder_s_tokens(images: Tensor, copied: Callable) -> None:
    model = copied(mae(masking=asking()))
    before = by_hand(model, images)
    assert torch.equal(kept(model, images), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert not torch.equal(by_hand(model, images), before)
    assert torch.equal(kept(model, images), by_hand(model, images))


def test_a_pickle_looks_through_its_own_eyes(images: Tensor) -> None:
    model = pickle.loads(pickle.dumps(mae(masking=asking())))
    with torch.no_grad():
        model.backbone.vit.pos_embed.mul_(-50)
    assert torch.equal(kept(model, images), by_hand(model, images))


def test_looking_leaves_no_trace(images: Tensor) -> None:
    model = mae(masking=asking()).train()
    seen = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: seen.append(1))
    state = torch.get_rng_state()
    tokens = patch_tokens(model, images)
    assert tokens.shape == (4, 64, 32)
    assert not tokens.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert not seen
    assert all(module.training for module in model.modules())
    assert list(model.state_dict()) == list(mae().state_dict())
    kept(model, images)
    assert seen


def test_of_a_student_and_a_teacher_the_teacher() -> None:
    vit = VisionTransformer(
        img_size=32, patch_size=4, embed_dim=32, depth=1, num_heads=2, dynamic_img_size=True
    )
    model = IBOT(vit, output_dim=64)
    wrap(model, masking=asking(mask_ratio=0.7))
    assert encoder_of_whole_images(model) is model.teacher_backbone
    model.teacher_backbone.requires_grad_(True)
    with pytest.raises(ValueError, match="has 2 MaskedVisionTransformers, 0 of them without"):
        encoder_of_whole_images(model)


def test_which_encoder_is_not_guessed() -> None:
    model = MAE()
    model.other = copy.deepcopy(model.backbone)
    with pytest.raises(ValueError, match="features='encoder' must mean one encoder: MAE has 2"):
        wrap(model, masking=asking())
    assert not hasattr(model, "_mim_plugin")
    wrap(model, masking=DPPMasking())
    with pytest.raises(TypeError, match=r"DPPMasking\(features='encoder'\) needs one"):
        wrap(BlockMasked(), masking=asking())


def test_torchvision_s_vit(images: Tensor) -> None:
    model: nn.Module = wrap(SimMIM(), masking=asking())
    tokens = patch_tokens(model, images)
    assert tokens.shape[:2] == (4, 16)
    loss = model.training_step(([images], None, None), 0)
    assert loss.isfinite()
