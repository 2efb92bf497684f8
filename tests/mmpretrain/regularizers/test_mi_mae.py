"""MIMAE and MISimMIM beside the stock MAE and SimMIM."""

import pickle

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from mim_plugins.masking import ComplementaryMasking, PatchMask
from mim_plugins.mmpretrain import MIMAE
from mim_plugins.regularizers import infonce

from ..models import build, train

FOUR = {"type": "ComplementaryMasking", "num_masks": 4}
SMALL = {"hidden_dim": 16, "projection_dim": 8}


def mi_mae(masks: dict | None = None, **arguments: object) -> torch.nn.Module:
    algorithm = {"type": "MIMAE", "information": SMALL, **arguments}
    return build("MaskedMAEViT", algorithm, masking=masks or FOUR)


@pytest.mark.parametrize("base", [None, {"type": "DPPMasking", "tau": 0.3}])
def test_one_pass_equals_four_stock_passes(base: dict | None) -> None:
    """Latents, reconstruction loss and gradients are those of the stock steps, in turn."""
    ours = mi_mae({**FOUR, "base": base}, cross_weight=0.0, input_weight=0.0)
    stock = build("MaskedMAEViT")
    images = torch.rand(3, 3, 64, 64)
    torch.manual_seed(2)
    latent, mask, ids_restore = ours.backbone(images)
    assert latent.shape == (12, 17, 32)
    assert mask.shape == ids_restore.shape == (12, 64)
    assert ((1 - mask).view(4, 3, 64).sum(dim=0) == 1).all()
    torch.manual_seed(2)
    loss = ours.loss(images, None)["loss"]
    loss.backward()
    ids = ids_restore.argsort(dim=1)
    total = 0
    for m in range(4):
        given = PatchMask(ids[3 * m : 3 * m + 3], 16)
        alone, _, restore = stock.backbone(images, mask=given)
        torch.testing.assert_close(latent[3 * m : 3 * m + 3], alone, rtol=1e-5, atol=1e-5)
        total = total + stock.head.loss(stock.neck(alone, restore), images, given.mask.float())
    (total / 4).backward()
    torch.testing.assert_close(loss, total / 4)
    for found, expected in zip(ours.parameters(), stock.parameters(), strict=True):
        if expected.requires_grad:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-6)


def test_patches_are_embedded_and_targets_built_once() -> None:
    model, calls = mi_mae(), []
    model.backbone.patch_embed.register_forward_hook(lambda *a: calls.append(a[2][0].shape))
    construct = model.head.construct_target
    model.head.construct_target = lambda images: calls.append(images.shape) or construct(images)
    model.loss(torch.rand(3, 3, 64, 64), None)
    assert calls == [(3, 64, 32), (3, 3, 64, 64)]


def test_terms_are_named_and_cross_is_that_of_the_latents() -> None:
    model = mi_mae(cross_weight=0.3, output_weight=0.2, information={"projection_dim": None})
    images = torch.rand(6, 3, 64, 64)
    torch.manual_seed(2)
    losses = model.loss(images, None)
    name = "mutual_information"
    assert set(losses) == {
        "loss",
        *(f"loss_{name}_{term}" for term in ("cross", "output", "input", "variational")),
        *(f"{name}_{term}" for term in ("cross", "output", "input")),
    }
    torch.manual_seed(2)
    latent = model.backbone(images)[0]
    features = latent[:, 1:].mean(dim=1).chunk(4)
    bounds = [infonce(features[m], features[n]) for m in range(4) for n in range(4) if m != n]
    expected = torch.stack(bounds).mean()
    torch.testing.assert_close(losses[f"{name}_cross"], expected)
    torch.testing.assert_close(losses[f"loss_{name}_cross"], -0.3 * expected)
    torch.manual_seed(2)
    total, logged = model.parse_losses(model.loss(images, None))
    parts = [value for key, value in losses.items() if key.startswith("loss")]
    torch.testing.assert_close(total, torch.stack(parts).sum())
    assert logged[f"{name}_cross"] == losses[f"{name}_cross"]


def test_it_composes_with_uniformity_and_dpp_masks() -> None:
    algorithm = {
        "type": "RegularizedMAE",
        "regularizers": [
            {"type": "UniformityHead", "weight": 0.01},
            {"type": "MutualInformationHead", "dim": 32, **SMALL},
        ],
    }
    masks = {**FOUR, "base": {"type": "DPPMasking", "tau": 0.3}}
    model = build("MaskedMAEViT", algorithm, masking=masks)
    losses = model.loss(torch.rand(4, 3, 64, 64), None)
    assert {"loss", "loss_uniformity", "loss_mutual_information_cross"} < set(losses)
    assert all(torch.isfinite(value) for value in losses.values())
    assert torch.isfinite(torch.tensor(train(model, 2))).all()


def test_who_learns_from_what() -> None:
    model = mi_mae(cross_weight=0.3, output_weight=0.2)
    train(model, 20)  # until q's estimate is above 0
    losses = model.loss(torch.rand(8, 3, 64, 64), None)

    def learners(term: str) -> set[str]:
        names, parameters = zip(
            *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
        )
        found = torch.autograd.grad(losses[term], parameters, allow_unused=True, retain_graph=True)
        moved = {n for n, g in zip(names, found, strict=True) if g is not None and g.any()}
        prefix = "regularizers.mutual_information."
        return {n.removeprefix(prefix).split(".")[0] for n in moved}

    name = "loss_mutual_information"
    assert learners("loss") == {"backbone", "neck"}
    assert learners(f"{name}_cross") == {"backbone", "projection"}
    assert learners(f"{name}_output") == {"backbone", "projection", "target"}
    assert learners(f"{name}_variational") == {"variational"}
    assert learners(f"{name}_input") <= {"backbone"}


def test_the_terms_move_what_they_measure() -> None:
    images = torch.rand(16, 3, 1, 1).expand(-1, -1, 64, 64) + 0.2 * torch.rand(16, 3, 64, 64)

    def measured(**weights: float) -> tuple[float, float]:
        model = mi_mae(**weights)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        torch.manual_seed(1)
        for _ in range(60):
            losses = model.loss(images, None)
            loss, _ = model.parse_losses(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        name = "mutual_information"
        return losses[f"{name}_cross"].item(), losses[f"{name}_input"].item()

    # Tiny weights measure without moving anything.
    cross, upper = measured(cross_weight=1e-9, input_weight=1e-9)
    assert measured(cross_weight=1.0, input_weight=1e-9)[0] > cross + 0.3
    assert measured(cross_weight=1e-9, input_weight=1.0)[1] < 0.5 * upper


def test_what_is_learned_lies_outside_the_backbone_and_is_loaded_again() -> None:
    model = mi_mae(output_weight=0.1)
    train(model, 2)
    names = set(model.state_dict()) - set(build("MAEViT").state_dict())
    networks = {name.split(".")[2] for name in names}
    assert all(name.startswith("regularizers.mutual_information.") for name in names)
    assert networks == {"projection", "target", "variational"}
    other = mi_mae(output_weight=0.1)
    other.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    assert train(other, 2) == train(model, 2)


def test_one_image_is_finite() -> None:
    loss, _ = (model := mi_mae()).parse_losses(model.loss(torch.rand(1, 3, 64, 64), None))
    assert torch.isfinite(loss)


def simmim(algorithm: dict, swin: bool) -> torch.nn.Module:
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    arch = {"embed_dims": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    backbone = {"type": "SimMIMSwinTransformer", "arch": arch, "img_size": 64}
    backbone["stage_cfgs"] = {"block_cfgs": {"window_size": 2}}
    if not swin:
        arch = {"embed_dims": 32, "num_layers": 2, "num_heads": 2, "feedforward_channels": 64}
        backbone = {"type": "SimMIMViT", "arch": arch, "img_size": 64, "patch_size": 8}
    return MODELS.build(
        {
            "backbone": backbone,
            "neck": {
                "type": "SimMIMLinearDecoder",
                "in_channels": 128 if swin else 32,
                "encoder_stride": 32 if swin else 8,
            },
            "head": {
                "type": "SimMIMHead",
                "patch_size": 4 if swin else 8,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L1", "channel": 3},
            },
            **algorithm,
        }
    )


@pytest.mark.parametrize("swin", [True, False], ids=["swin", "vit"])
def test_simmim_with_two_masks(swin: bool) -> None:
    two = {"type": "ComplementaryMasking", "num_masks": 2, "mask_unit": 32 if swin else 16}
    model = simmim(
        {"type": "MISimMIM", "masking": two, "output_weight": 0.1, "information": SMALL},
        swin,
    ).eval()  # Swin drops paths at random
    assert model.mask_ratio == 0.6
    images, masks = torch.rand(4, 3, 64, 64), []
    model.backbone.register_forward_pre_hook(lambda module, given: masks.append(given[1]))
    torch.manual_seed(3)
    losses = model.loss(images, None)
    (mask,) = masks
    expected = ComplementaryMasking(
        2, mask_ratio=0.6, patch_size=4 if swin else 8, mask_unit=two["mask_unit"]
    )
    torch.manual_seed(3)
    assert torch.equal(mask.flatten(1).bool(), expected(images).mask)
    assert ((1 - mask).view(2, 4, -1).sum(dim=0) <= 1).all()
    stock = model.head.loss(
        model.neck(model.backbone(images.repeat(2, 1, 1, 1), mask)[0]),
        images.repeat(2, 1, 1, 1),
        mask,
    )
    torch.testing.assert_close(losses["loss"], stock)
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert torch.isfinite(loss)
    assert {"loss_mutual_information_cross", "loss_mutual_information_input"} < set(losses)


def test_bad_arguments_fail_at_construction() -> None:
    with pytest.raises(ValueError, match=r"cross_weight=0.1 needs several masks.*backbone\."):
        mi_mae({"type": "RandomMasking"})
    with pytest.raises(ValueError, match="cross_weight=0.1 needs several masks"):
        build("MAEViT", {"type": "MIMAE"})
    with pytest.raises(
        ValueError, match="cross_weight=0.1 needs several masks per image: set mask"
    ):
        simmim({"type": "MISimMIM", "masking": {"type": "RandomMasking"}}, False)
    with pytest.raises(ValueError, match="must be at most 1 for disjoint visible sets"):
        mi_mae({**FOUR, "num_masks": 5})
    with pytest.raises(ValueError, match="input_weight must be finite"):
        mi_mae(input_weight=-1.0)
    with pytest.raises(ValueError, match="token must be one of"):
        mi_mae(information={"token": "max"})
    with pytest.raises(ValueError, match="mask_ratio is 0.8 in the masking and 0.75 in"):
        mi_mae({**FOUR, "base": {"type": "DPPMasking", "mask_ratio": 0.8}})
    model = mi_mae()
    with pytest.raises(ValueError, match="mask must have a multiple of 2 rows, the images, got 3"):
        model.backbone(torch.rand(2, 3, 64, 64), mask=PatchMask(torch.arange(64).expand(3, -1), 16))
    assert isinstance(model, MIMAE)
