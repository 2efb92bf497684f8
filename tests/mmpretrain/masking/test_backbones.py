"""MaskedMAEViT beside the stock MAEViT it replaces."""

import copy
import pickle

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS, TASK_UTILS

from mim_plugins.masking import DPPMasking, PatchMask, RandomMasking

from ..models import build, train


def test_dpp_masks_reach_the_loss() -> None:
    model = build("MaskedMAEViT", masking={"type": "DPPMasking", "tau": 0.0})
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


def _both() -> list[torch.nn.Module]:
    dpp = {"type": "DPPMasking", "tau": 0.5}
    return [build("MaskedMAEViT", masking=dpp).backbone, build_hivit("MaskedMAEHiViT", masking=dpp)]


@pytest.mark.parametrize("number", [0, 1], ids=["vit", "hivit"])
def test_given_masks_are_used_or_refused(number: int) -> None:
    model = _both()[number]
    model.eval()  # returns None
    patches = model.num_patches
    side = int(patches**0.5)
    removed = torch.ones(2, patches, dtype=torch.bool)
    removed[0, :side], removed[1, ::side] = False, False
    images = torch.rand(2, 3, 64, 64)
    expected = model(images, mask=PatchMask.from_mask(removed))
    assert torch.equal(expected[1].bool(), removed)
    for given in (removed, removed.view(2, side, side), removed.long(), removed.float()):
        for found, wanted in zip(model(images, mask=given), expected, strict=True):
            assert torch.equal(found, wanted)
    for wrong in ("yes", 0, 1, removed.numpy()):
        with pytest.raises(TypeError, match="mask must be True, a PatchMask, a tensor"):
            model(images, mask=wrong)
    with pytest.raises(ValueError, match=f"must have the model's {patches} patches, got 9 for"):
        model(images, mask=PatchMask.from_mask(torch.arange(9).expand(2, 9) > 3))
    with pytest.raises(ValueError, match="mask must have .* rows, the images, got 3"):
        model(images, mask=removed[:1].expand(3, -1))


@pytest.mark.parametrize("number", [0, 1], ids=["vit", "hivit"])
def test_the_ratio_may_be_scheduled(number: int) -> None:
    model = _both()[number]
    for ratio in (0.75, 0.5, 0.25):
        model.mask_ratio = ratio
        assert model(torch.rand(2, 3, 64, 64))[1].mean().item() == ratio
    model.mask_ratio = 1.0
    with pytest.raises(ValueError, match=r"mask_ratio must be in \(0, 1\), got 1"):
        model(torch.rand(2, 3, 64, 64))
    model.mask_ratio = 0.0  # a plain autoencoder, as stock
    assert not model(torch.rand(2, 3, 64, 64))[1].any()
    assert "masking=DPPMasking(" in repr(model)


@pytest.mark.parametrize("mask", [None, False])
def test_features_of_whole_images_are_stock(mask: bool | None) -> None:
    stock, ours = build("MAEViT").eval(), build("MaskedMAEViT").eval()
    images = torch.rand(2, 3, 64, 64)
    expected = stock.backbone(images, mask=None)
    assert torch.equal(ours.backbone(images, mask=mask)[0], expected[0])
    assert torch.equal(ours.extract_feat(images)[0], expected[0])


def test_every_masking_is_registered_and_inherits_ratio_and_patch_size() -> None:
    assert TASK_UTILS.get("Masking") is None
    for name in ("RandomMasking", "GridMasking", "BlockMasking", "DPPMasking"):
        assert TASK_UTILS.get(name) is not None
        model = build("MaskedMAEViT", mask_ratio=0.5, mask_generator={"type": name})  # old name
        _, mask, _ = model.backbone(torch.rand(2, 3, 64, 64))
        assert mask.sum(dim=1).tolist() == [32, 32]


def test_larger_masking_unit() -> None:
    model = build("MaskedMAEViT", masking={"type": "DPPMasking", "mask_unit": 16})
    _, mask, _ = model.backbone(torch.rand(2, 3, 64, 64))
    units = mask.view(2, 4, 2, 4, 2)
    assert torch.equal(units.amax(dim=(2, 4)), units.amin(dim=(2, 4)))


def test_copies_and_pickles() -> None:
    model = build("MaskedMAEViT", masking={"type": "DPPMasking", "tau": 0.5})
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.backbone.masking.tau == 0.5
        assert train(other, 2) == train(copy.deepcopy(model), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"masking": {"type": "DPPMasking", "mask_ratio": 0.5}}, ValueError,
         "mask_ratio is 0.5 in the masking and 0.75 in what uses it: give it once"),
        ({"masking": {"type": "DPPMasking", "patch_size": 16}}, ValueError,
         "patch_size is 16 in the masking and 8 in what uses it"),
        ({"masking": {"type": "DPPMasking", "tau": 2}}, ValueError, "tau must be in"),
        ({"masking": {"type": "DPPMasking", "kernel": "laplace"}}, ValueError,
         "kernel must be one of"),
        ({"masking": {"type": "DPPMasking", "mask_unit": 24}}, ValueError,
         "multiples of mask_unit=24, got 64 x 64"),
        ({"mask_ratio": 0.999}, ValueError, "keeps none of the 64"),
        ({"mask_ratio": 1.5}, ValueError, "mask_ratio must be in"),
        ({"masking": {"type": "MAEViT"}}, KeyError, "MAEViT is not in"),
        ({"masking": 3}, TypeError, "masking must be a config"),
        ({"mask_generator": 3}, TypeError, "masking must be a config"),
        ({"masking": {"tau": 0.5}}, ValueError, "masking must name its type"),
        ({"masking": {"type": "DPPMasking"}, "mask_generator": {"type": "DPPMasking"}}, TypeError,
         "masking and mask_generator, its old name, exclude each other"),
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
    model = build_hivit("MaskedMAEHiViT", masking={"type": "DPPMasking", "tau": 0.0})
    images = torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    latent, mask, ids_restore = model(images)
    torch.manual_seed(0)
    expected = model.draw_mask(images)
    assert latent.shape[:2] == (2, 4)
    assert torch.equal(mask, expected.mask.float())
    assert torch.equal(ids_restore, expected.ids_restore)
    with pytest.raises(ValueError, match="must draw one mask per image for HiViT"):
        build_hivit("MaskedMAEHiViT", masking={"type": "ComplementaryMasking"})
