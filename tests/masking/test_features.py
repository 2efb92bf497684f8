"""Kernels on features of networks: of the model that is masked, and of frozen ones of timm."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim_plugins.masking import ComplementaryMasking, DPPMasking, RandomMasking
from mim_plugins.masking.kernels import unit_features


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def encode(images: Tensor) -> Tensor:
    """A token per patch of 8 x 8 pixels."""
    return F.avg_pool2d(images, 8).flatten(2).mT


def draw(masking: Any, images: Tensor, **arguments: Any) -> Tensor:
    torch.manual_seed(1)
    return masking(images, mask_ratio=0.5, patch_size=8, **arguments).ids_shuffle


def test_encoder_is_the_callable_given_by_hand(images: Tensor) -> None:
    asking = DPPMasking(tau=0.0, features="encoder")
    bound = asking.with_encoder(encode)
    by_hand = DPPMasking(tau=0.0, features=encode)
    assert torch.equal(draw(bound, images), draw(by_hand, images))
    assert not torch.equal(draw(bound, images), draw(DPPMasking(tau=0.0), images))
    assert repr(bound) == repr(asking)
    with pytest.raises(RuntimeError, match="features='encoder' needs a model"):
        asking(images)


def test_two_models_may_share_a_masking(images: Tensor) -> None:
    asking = DPPMasking(tau=0.0, features="encoder")
    one, other = asking.with_encoder(encode), asking.with_encoder(lambda x: encode(x * x))
    assert not torch.equal(draw(one, images), draw(other, images))


def test_only_who_asks_is_bound() -> None:
    for masking in (RandomMasking(), DPPMasking(), ComplementaryMasking(2), DPPMasking(tau=1.0)):
        assert masking.with_encoder(encode) is masking
        assert not masking.needs_model
    assert DPPMasking(features="encoder").needs_model
    assert ComplementaryMasking(2, base=DPPMasking(features="encoder")).needs_model


def test_complementary_masks_ask_for_their_base(images: Tensor) -> None:
    asking = ComplementaryMasking(2, base=DPPMasking(tau=0.0, features="encoder"))
    by_hand = ComplementaryMasking(2, base=DPPMasking(tau=0.0, features=encode))
    assert torch.equal(draw(asking.with_encoder(encode), images), draw(by_hand, images))
    with pytest.raises(RuntimeError, match="needs a model"):
        asking(images, mask_ratio=0.5)


def test_at_tau_1_nobody_encodes(images: Tensor) -> None:
    def fail(images: Tensor) -> Tensor:
        raise AssertionError

    masking = DPPMasking(tau=1.0, features="encoder").with_encoder(fail)
    assert torch.equal(draw(masking, images), draw(RandomMasking(), images))


def test_tokens_are_averaged_over_larger_units(images: Tensor) -> None:
    found = unit_features(images, (2, 3), encode)
    expected = F.avg_pool2d(F.avg_pool2d(images, 8), 2).flatten(2).mT
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"features\(images\) must have shape \(3, 9, D\)"):
        unit_features(images, (3, 3), encode)  # 24 tokens are no 9 squares


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"features must be one of .*'encoder'.*, got 'tokens'"):
        DPPMasking(features="tokens")
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="must name a model of timm, got 'timm:nothing'"):
        DPPMasking(features="timm:nothing")


@pytest.fixture(scope="module")
def frozen_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model of timm with registers, whose pretrained weights are a local file."""
    pytest.importorskip("timm")
    from timm.models import generate_default_cfgs, register_model
    from timm.models._builder import build_model_with_cfg
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
    sizes |= {"reg_tokens": 2, "num_classes": 5}
    path = tmp_path_factory.mktemp("timm") / "tiny.pth"
    torch.manual_seed(3)
    torch.save(VisionTransformer(**sizes).state_dict(), path)

    def mim_plugins_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
        return build_model_with_cfg(
            VisionTransformer, "mim_plugins_tiny", pretrained, **{**sizes, **kwargs}
        )

    import sys

    config = {"file": str(path), "num_classes": 5, "first_conv": "patch_embed.proj"}
    module = sys.modules[__name__]
    module.default_cfgs = generate_default_cfgs(  # type: ignore[attr-defined]
        {"mim_plugins_tiny.here": {**config, "classifier": "head", "input_size": (3, 32, 32)}}
    )
    module.__all__ = ["mim_plugins_tiny"]  # type: ignore[attr-defined]
    register_model(mim_plugins_tiny)
    return f"timm:mim_plugins_tiny#{path}"


def test_a_frozen_model_of_timm(frozen_name: str, images: Tensor) -> None:
    """Tokens of images whose units have the size of the model's patches, from its weights."""
    from timm.models.vision_transformer import VisionTransformer

    name, path = frozen_name.split("#")
    state = torch.get_rng_state()
    masking = DPPMasking(tau=0.0, features=name)
    assert torch.equal(state, torch.get_rng_state())

    stock = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, reg_tokens=2,
        num_classes=5, dynamic_img_size=True,
    )  # fmt: skip
    stock.load_state_dict(torch.load(Path(path), weights_only=True))
    stock.eval()

    def by_hand(images: Tensor) -> Tensor:
        large = F.interpolate(images, (64, 96), mode="bilinear", antialias=True)
        with torch.no_grad():
            return stock.forward_features(large)[:, 3:]

    assert torch.equal(draw(masking, images), draw(DPPMasking(tau=0.0, features=by_hand), images))
    again = pickle.loads(pickle.dumps(copy.deepcopy(masking)))
    assert torch.equal(draw(again, images), draw(masking, images))
    assert len(pickle.dumps(masking)) < 1000, "the weights are no part of the masking"
    assert masking.needs_model


def test_a_model_without_tokens_is_refused() -> None:
    timm = pytest.importorskip("timm")
    assert timm.is_model("test_resnet")
    with pytest.raises(ValueError, match="has no tokens of its patches"):
        DPPMasking(features="timm:test_resnet")


def test_a_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'mim_plugins\[timm\]'"):
        DPPMasking(features="timm:vit_tiny_patch16_224")
