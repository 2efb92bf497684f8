"""DPPMasking(features='encoder'): masks by the model's own patch tokens."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.registry import init_default_scope
from mmpretrain.models import HiViT, VisionTransformer
from mmpretrain.registry import MODELS, TRANSFORMS
from torch import Tensor, nn

from mim_plugins.masking import DPPMasking
from mim_plugins.mmpretrain import MaskedMAEViT

from ..models import ARCH, build
from ..regularizers.test_mi_mae import SMALL
from ..regularizers.test_regularized import build_simmim

HIVIT = {"embed_dims": 32, "depths": [1, 1, 7], "num_heads": 2}
ENCODER = {"type": "DPPMasking", "tau": 0.0, "features": "encoder"}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def stock_tokens(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """By upstream's ViT with a copy of the model's weights, in evaluation mode."""
    vit = VisionTransformer(ARCH, img_size=64, patch_size=8, out_type="raw")
    vit.load_state_dict(model.backbone.state_dict())
    vit.eval()  # returns None

    def tokens(images: Tensor) -> Tensor:
        with torch.no_grad():
            return vit(images)[0][:, 1:]

    return tokens


def by_hand(model: nn.Module, images: Tensor, **arguments: Any) -> Tensor:
    masking = DPPMasking(tau=0.0, features=stock_tokens(model), patch_size=8, **arguments)
    torch.manual_seed(2)
    return masking(images).mask


def drawn(model: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(2)
    return model.backbone(images)[1].bool()


@pytest.mark.parametrize("unit", [8, 16])
def test_masks_are_those_of_the_encoder_s_tokens(images: Tensor, unit: int) -> None:
    """Also with dropout and stochastic depth, which are off, and after a step of training."""
    model = build(
        "MaskedMAEViT", masking={**ENCODER, "mask_unit": unit}, drop_rate=0.3, drop_path_rate=0.3
    ).train()
    before = by_hand(model, images, mask_unit=unit)
    assert torch.equal(drawn(model, images), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = by_hand(model, images, mask_unit=unit)
    assert torch.equal(drawn(model, images), after)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_look_through_their_own_eyes(images: Tensor, copied: Callable) -> None:
    """So an EMA of the model does, which is a copy."""
    model = build("MaskedMAEViT", masking=ENCODER)
    other = copied(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert torch.equal(drawn(other, images), by_hand(other, images))
    assert not torch.equal(drawn(other, images), drawn(model, images))


def test_looking_leaves_no_trace(images: Tensor) -> None:
    model = build("MaskedMAEViT", masking=ENCODER, drop_rate=0.3).train()
    model.backbone.layers[1].training = False
    model.backbone.layers[0].register_buffer("odd", torch.zeros(()), persistent=False)
    seen: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
        module.register_forward_pre_hook(lambda *_, name=name: seen.append(f"pre {name}"))
    modes = [module.training for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    keys = list(build("MAEViT").state_dict())
    torch.manual_seed(3)
    mask = model.backbone.draw_mask(images)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    torch.rand(4, 64)
    assert torch.equal(state, torch.get_rng_state()), "it drew more than random masking does"
    assert seen == []
    assert [module.training for module in model.modules()] == modes
    assert list(weights) == keys
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(mask) == 4
    model.loss(images, None)
    assert seen.count("backbone.layers.0") == 1


def test_torch_s_own_hooks_still_run(images: Tensor) -> None:
    """A weight under (old) weight norm is computed by a hook."""
    model = build("MaskedMAEViT", masking=ENCODER)
    expected = drawn(model, images)
    torch.nn.utils.weight_norm(model.backbone.layers[0].ffn.layers[1])
    with torch.no_grad():
        model.backbone.layers[0].ffn.layers[1].weight.zero_()  # stale, until the hook has run
    assert torch.equal(drawn(model, images), expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradients_are_those_of_the_same_masks(images: Tensor, dtype: Any) -> None:
    """Under autocast too, whose cache must not hand on weights cast without gradient."""
    model = build("MaskedMAEViT", masking=ENCODER)
    other = build("MaskedMAEViT", masking={**ENCODER, "features": stock_tokens(model)})
    for each in (model, other):
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            each.loss(images, None)["loss"].backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            assert torch.equal(one.grad, two.grad), name


def test_complementary_masks(images: Tensor) -> None:
    masking = {"type": "ComplementaryMasking", "num_masks": 4, "base": ENCODER}
    model = build("MaskedMAEViT", {"type": "MIMAE", "information": SMALL}, masking=masking)
    given = {**masking, "base": {**ENCODER, "features": stock_tokens(model)}}
    other = build("MaskedMAEViT", {"type": "MIMAE", "information": SMALL}, masking=given)
    assert torch.equal(drawn(model, images), drawn(other, images))


def test_hivit(images: Tensor) -> None:
    """Its tokens of whole images, as upstream's HiViT has them."""
    size = {"arch": HIVIT, "img_size": 64, "patch_size": 16, "out_indices": [6]}
    init_default_scope("mmpretrain")
    model = MODELS.build({"type": "MaskedMAEHiViT", "masking": ENCODER, **size})
    stock = HiViT(**size)
    stock.load_state_dict(model.state_dict())
    stock.eval()  # returns None

    def tokens(images: Tensor) -> Tensor:
        return stock(images)[-1].flatten(2).mT

    torch.manual_seed(2)
    found = model(images)[1].bool()
    torch.manual_seed(2)
    assert torch.equal(found, DPPMasking(tau=0.0, features=tokens, patch_size=16)(images).mask)


@pytest.mark.parametrize("vit", [True, False])
def test_mi_simmim(vit: bool, images: Tensor) -> None:
    """Swin's last stage has one token per 32 pixels, which is then the masking unit."""
    side = 8 if vit else 4
    masking = {"type": "ComplementaryMasking", "num_masks": 2, "base": ENCODER, "mask_unit": 32}
    algorithm = {"type": "MISimMIM", "masking": masking, "information": {**SMALL, "token": "mean"}}
    model = build_simmim(algorithm, vit)

    def tokens(images: Tensor) -> Tensor:
        output = model.backbone(images, None)[-1]
        return output[:, 1:] if vit else output.flatten(2).mT

    model.eval()
    torch.manual_seed(2)
    found = model.masking(images, mask_ratio=0.5, patch_size=side).mask
    base = DPPMasking(tau=0.0, features=tokens)
    given = type(model.masking)(2, base=base, mask_unit=32)
    torch.manual_seed(2)
    assert torch.equal(found, given(images, mask_ratio=0.5, patch_size=side).mask)
    assert torch.isfinite(sum(model.train().loss(images, None).values()))


@pytest.mark.parametrize("features", ["encoder", "timm:vit_tiny_patch16_224"])
def test_in_the_data_pipeline_there_is_no_encoder(
    features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_default_scope("mmpretrain")
    monkeypatch.setattr("mim_plugins.masking.frozen.model", lambda features: None)  # no download
    masking = {**ENCODER, "features": features}
    with pytest.raises(ValueError, match="in a data pipeline"):
        TRANSFORMS.build({"type": "MaskGenerator", "masking": masking})
    with pytest.raises(ValueError, match="draw the masks in the model"):
        TRANSFORMS.build({"type": "DPPMaskGenerator", "features": features})


def test_the_config_stays_as_it_was_given() -> None:
    model = build("MaskedMAEViT", masking=ENCODER).backbone
    assert isinstance(model, MaskedMAEViT)
    assert "features='encoder'" in repr(model)
    assert len(repr(model.masking)) < 200
