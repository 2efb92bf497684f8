"""MaskedMAEViT beside the stock MAEViT it replaces."""

import copy
import pickle

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS, TASK_UTILS

from mim_plugins.masking import DPPMasking, RandomMasking

from ..models import build, train


def test_dpp_masks_reach_the_loss() -> None:
    model = build("MaskedMAEViT", mask_generator={"type": "DPPMasking", "tau": 0.0})
    images = torch.rand(4, 3, 64, 64)
    torch.manual_seed(2)
    latent, mask, ids_restore = model.backbone(images)
    torch.manual_seed(2)
    expected = DPPMasking(patch_size=8, tau=0.0)(images)
    assert latent.shape == (4, 17, 32)
    assert mask.dtype == torch.float32
    assert torch.equal(mask.bool(), expected.mask)
    assert torch.equal(ids_restore, expected.ids_restore)
    assert train(model) != train(build("MAEViT"))


def test_a_given_mask_is_used() -> None:
    """What the encoder sees is the visible patches and nothing else."""
    model = build("MaskedMAEViT").eval()
    images = torch.rand(2, 3, 64, 64)
    mask = RandomMasking(patch_size=8)(images)
    latent, _, _ = model.backbone(images, mask=mask)
    pixel_mask = mask.mask.view(2, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    hidden_changed = torch.where(pixel_mask, torch.rand_like(images), images)
    visible_changed = torch.where(pixel_mask, images, torch.rand_like(images))
    assert torch.equal(model.backbone(hidden_changed, mask=mask)[0], latent)
    assert not torch.allclose(model.backbone(visible_changed, mask=mask)[0], latent)


@pytest.mark.parametrize("mask", [None, False])
def test_features_of_whole_images_are_stock(mask: bool | None) -> None:
    stock, ours = build("MAEViT").eval(), build("MaskedMAEViT").eval()
    images = torch.rand(2, 3, 64, 64)
    expected = stock.backbone(images, mask=None)
    assert torch.equal(ours.backbone(images, mask=mask)[0], expected[0])
    assert torch.equal(ours.extract_feat(images)[0], expected[0])


def test_every_masking_is_registered_and_inherits_ratio_and_patch_size() -> None:
    for name in ("RandomMasking", "GridMasking", "BlockMasking", "DPPMasking"):
        assert TASK_UTILS.get(name) is not None
        model = build("MaskedMAEViT", mask_ratio=0.5, mask_generator={"type": name})
        _, mask, _ = model.backbone(torch.rand(2, 3, 64, 64))
        assert mask.sum(dim=1).tolist() == [32, 32]


def test_larger_masking_unit() -> None:
    model = build("MaskedMAEViT", mask_generator={"type": "DPPMasking", "mask_unit": 16})
    _, mask, _ = model.backbone(torch.rand(2, 3, 64, 64))
    units = mask.view(2, 4, 2, 4, 2)
    assert torch.equal(units.amax(dim=(2, 4)), units.amin(dim=(2, 4)))


def test_copies_and_pickles() -> None:
    model = build("MaskedMAEViT", mask_generator={"type": "DPPMasking", "tau": 0.5})
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.backbone.mask_generator.tau == 0.5
        assert train(other, 2) == train(copy.deepcopy(model), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask_generator": {"type": "DPPMasking", "mask_ratio": 0.5}}, ValueError,
         "mask_generator has mask_ratio=0.5, the backbone 0.75: set mask_ratio on the backbone"),
        ({"mask_generator": {"type": "DPPMasking", "patch_size": 16}}, ValueError,
         "mask_generator has patch_size=16, the backbone 8"),
        ({"mask_generator": {"type": "DPPMasking", "tau": 2}}, ValueError, "tau must be in"),
        ({"mask_generator": {"type": "DPPMasking", "kernel": "laplace"}}, ValueError,
         "kernel must be one of"),
        ({"mask_generator": {"type": "DPPMasking", "mask_unit": 24}}, ValueError,
         "multiples of mask_unit=24, got 64 x 64"),
        ({"mask_ratio": 0.999}, ValueError, "keeps none of the 64"),
        ({"mask_ratio": 1.5}, ValueError, "mask_ratio must be in"),
        ({"mask_generator": {"type": "MAEViT"}}, KeyError, "MAEViT is not in"),
        ({"mask_generator": 3}, TypeError, "mask_generator must be a config"),
    ],
)  # fmt: skip
def test_bad_arguments_fail_at_construction(
    arguments: dict, error: type[Exception], message: str
) -> None:
    # mmengine's registry re-raises the constructor's error with the class's name in front.
    with pytest.raises(error, match=message):
        build("MaskedMAEViT", **arguments)


def build_hivit(backbone: str, **arguments: object) -> torch.nn.Module:
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    arch = {"embed_dims": 32, "depths": [1, 1, 7], "num_heads": 2}
    return MODELS.build(
        {"type": backbone, "arch": arch, "img_size": 64, "out_indices": [6], **arguments}
    )


def test_random_masking_in_hivit_equals_stock_bit_for_bit() -> None:
    stock, ours = build_hivit("MAEHiViT"), build_hivit("MaskedMAEHiViT")
    assert list(stock.state_dict()) == list(ours.state_dict())
    images = torch.rand(2, 3, 64, 64)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = stock(images)
        torch.manual_seed(seed)
        assert all(torch.equal(a, b) for a, b in zip(ours(images), expected, strict=True))
    whole = ours(images, mask=None)[0]
    assert torch.equal(whole, stock(images, mask=None)[0])
    assert torch.equal(whole, ours(images, mask=False)[0])


def test_hivit_with_dpp_masks() -> None:
    model = build_hivit("MaskedMAEHiViT", mask_generator={"type": "DPPMasking", "tau": 0.0})
    images = torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    latent, mask, ids_restore = model(images)
    torch.manual_seed(0)
    expected = model.mask_generator(images)
    assert latent.shape[:2] == (2, 4)
    assert torch.equal(mask, expected.mask.float())
    assert torch.equal(ids_restore, expected.ids_restore)
    with pytest.raises(ValueError, match="must draw one mask per image for HiViT"):
        build_hivit("MaskedMAEHiViT", mask_generator={"type": "ComplementaryMasking"})
