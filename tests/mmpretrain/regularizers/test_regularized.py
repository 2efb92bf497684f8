"""RegularizedMAE and UMAE beside the stock MAE."""

from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.registry import init_default_scope
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mim_plugins.mmpretrain import UMAE, SimMIMViT
from mim_plugins.regularizers import uniformity

from ..models import ARCH, build, train


def build_hivit(algorithm: dict, backbone: str = "MAEHiViT") -> torch.nn.Module:
    """A tiny MAE of 16 patches, of 16 px."""
    arch = {"embed_dims": 32, "depths": [1, 1, 1], "num_heads": 2}
    neck = {"type": "MAEPretrainDecoder", "num_patches": 16, "patch_size": 16, "embed_dim": 32}
    neck |= {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    loss = {"type": "PixelReconstructionLoss", "criterion": "L2"}
    head = {"type": "MAEPretrainHead", "patch_size": 16, "loss": loss}
    encoder = {"type": backbone, "arch": arch, "img_size": 64, "patch_size": 16}
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    return MODELS.build({"backbone": encoder, "neck": neck, "head": head, **algorithm})


def terms(weight: float, **arguments: object) -> dict:
    return {
        "type": "RegularizedMAE",
        "regularizers": [{"type": "UniformityHead", "weight": weight, **arguments}],
    }


@pytest.mark.parametrize("token", ["cls", "mean"])
def test_the_term_is_the_mean_squared_cosine_of_all_pairs(token: str) -> None:
    stock, ours = build("MAEViT"), build("MAEViT", terms(0.3, token=token))
    images = torch.rand(6, 3, 64, 64)
    torch.manual_seed(2)
    reconstruction = stock.loss(images, None)["loss"]
    torch.manual_seed(2)
    losses = ours.loss(images, None)
    assert list(losses) == ["loss", "loss_uniformity"]
    assert torch.equal(losses["loss"], reconstruction)
    torch.manual_seed(2)
    latent = stock.backbone(images)[0].double()
    features = latent[:, 0] if token == "cls" else latent[:, 1:].mean(dim=1)
    pairs = [
        torch.nn.functional.cosine_similarity(a, b, dim=0) ** 2 for a in features for b in features
    ]
    expected = 0.3 * torch.stack(pairs).mean().item()
    assert losses["loss_uniformity"].item() == pytest.approx(expected, rel=1e-5)


def test_it_lowers_the_similarity_and_composes_with_dpp_masks() -> None:
    generator = {"type": "DPPMasking", "tau": 0.5}
    plain = build("MaskedMAEViT", masking=generator)
    regularized = build("MaskedMAEViT", terms(1.0), masking=generator)
    images = torch.rand(8, 3, 64, 64)
    measured = []
    for model in (plain, regularized):
        train(model, 30)
        features = torch.nn.functional.normalize(model.backbone(images, mask=None)[0][:, 0], dim=1)
        measured.append(((features @ features.T) ** 2).mean().item())
    assert measured[1] < 0.9 * measured[0]


def test_umae_is_the_preset() -> None:
    preset = build("MAEViT", {"type": "UMAE", "uniformity_weight": 0.3})
    assert isinstance(preset, UMAE)
    assert train(preset, 3) == train(build("MAEViT", terms(0.3)), 3)


def test_terms_are_logged_by_the_stock_runner(photo_folder: Path, tmp_path: Path) -> None:
    from mmengine.config import Config
    from mmengine.runner import Runner

    from ...upstream.tools import CROP, IMPORT, RUNTIME, TINY_MAE, loader

    config = tmp_path / "config.py"
    config.write_text(
        "_base_ = 'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'\n"
        + IMPORT
        + TINY_MAE
        + "model.update(type='UMAE', uniformity_weight=0.01)\n"
        + f"train_dataloader = {loader(photo_folder, 'train', 16, CROP)}"
        + RUNTIME
    )
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), tmp_path.name
    runner = Runner.from_cfg(cfg)
    runner.train()
    logged = {
        name: runner.message_hub.get_scalar(f"train/{name}").current()
        for name in ("loss", "loss_uniformity")
    }
    assert 0 < logged["loss_uniformity"] <= 0.01
    assert logged["loss"] > logged["loss_uniformity"]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="regularizers must have different names"):
        build(
            "MAEViT", {"type": "RegularizedMAE", "regularizers": [{"type": "UniformityHead"}] * 2}
        )
    with pytest.raises(ValueError, match="weight must be finite and at least 0, got -1"):
        build("MAEViT", terms(-1))
    with pytest.raises(ValueError, match="token"):
        build("MAEViT", terms(1.0, token="max"))


def test_without_masks_the_loss_is_over_all_patches() -> None:
    stock = build("MAEViT", mask_ratio=0.0)
    model = build("MAEViT", terms(0.3, token="mean"), mask_ratio=0.0)
    images = torch.rand(4, 3, 64, 64)
    losses = model.loss(images, None)
    latent, _, ids_restore = stock.backbone(images)
    target = stock.head.construct_target(images)
    expected = (stock.neck(latent, ids_restore) - target).square().mean()
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < losses["loss_uniformity"].item() <= 0.3


def test_hivit_has_no_class_token() -> None:
    """All its tokens are visible patches."""
    model = build_hivit({"type": "UMAE", "uniformity_weight": 0.5, "token": "mean"})
    images = torch.rand(4, 3, 64, 64)
    torch.manual_seed(2)
    losses = model.loss(images, None)
    torch.manual_seed(2)
    latent = model.backbone(images)[0]
    assert latent.shape == (4, 4, 32)
    expected = 0.5 * uniformity(latent.mean(dim=1))
    torch.testing.assert_close(losses["loss_uniformity"], expected)
    with pytest.raises(ValueError, match="uniformity has token='cls', but the encoder has no"):
        build_hivit({"type": "UMAE"})


def test_double_norm_is_the_backbones() -> None:
    model = build("MAEViT", {"type": "UMAE", "uniformity_weight": 1.0, "double_norm": True})
    torch.nn.init.uniform_(model.backbone.ln1.weight, 0.5, 2.0)
    images = torch.rand(4, 3, 64, 64)
    torch.manual_seed(2)
    loss = model.loss(images, None)["loss_uniformity"]
    torch.manual_seed(2)
    first = model.backbone(images)[0][:, 0]
    torch.testing.assert_close(loss, uniformity(model.backbone.ln1(first)))
    assert (loss - uniformity(first)).abs() > 1e-3
    assert "double_norm=True" in repr(model)


@pytest.mark.parametrize("hivit", [False, True], ids=["vit", "hivit"])
def test_masks_that_come_with_the_data_are_used(hivit: bool) -> None:
    if hivit:
        model, num = build_hivit({"type": "RegularizedMAE"}, "MaskedMAEHiViT"), 16
    else:
        model, num = build("MaskedMAEViT", {"type": "RegularizedMAE"}), 64
    given = torch.ones(2, num)
    given[0, : num // 4] = given[1, -num // 4 :] = 0
    samples = [DataSample(mask=mask.view(int(num**0.5), -1)) for mask in given]
    seen = []
    model.head.loss = lambda prediction, images, mask: seen.append(mask) or prediction.mean()
    model.loss(torch.rand(2, 3, 64, 64), samples)
    assert torch.equal(seen[0], given)
    model.loss(torch.rand(2, 3, 64, 64), [DataSample(), DataSample()])
    assert not torch.equal(seen[1], given)
    with pytest.raises(ValueError, match="data_samples must have a mask each, or none"):
        model.loss(torch.rand(2, 3, 64, 64), [samples[0], DataSample()])
    stock = build("MAEViT", {"type": "RegularizedMAE"})
    with pytest.raises(TypeError, match="MAEViT draws its own masks.*use MaskedMAEViT"):
        stock.loss(torch.rand(2, 3, 64, 64), samples)


def test_log_entries_are_fetched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("MAEViT", terms(0.3))
    losses = model.loss(torch.rand(4, 3, 64, 64), None)
    total, logged = model.parse_losses(losses)
    assert torch.equal(total, losses["loss"] + losses["loss_uniformity"])
    expected, fetched, cpu = {k: v.item() for k, v in losses.items()}, [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: fetched.append(self.shape) or cpu(self))
    assert dict(logged.items()) == expected
    assert fetched == [(2,)]


SWIN = {"embed_dims": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


def build_simmim(algorithm: dict, vit: bool, **arguments: object) -> torch.nn.Module:
    """A tiny SimMIM; its mask has 4 px patches with Swin, 8 px ones with ViT."""
    backbone = (
        {"type": "SimMIMViT", "arch": ARCH, "img_size": 64, "patch_size": 8, **arguments}
        if vit
        else {
            "type": "SimMIMSwinTransformer",
            "arch": SWIN,
            "img_size": 64,
            "stage_cfgs": {"block_cfgs": {"window_size": 2}},
        }
    )
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    model = MODELS.build(
        {
            "backbone": backbone,
            "neck": {
                "type": "SimMIMLinearDecoder",
                "in_channels": 32 if vit else 128,
                "encoder_stride": 8 if vit else 32,
            },
            "head": {
                "type": "SimMIMHead",
                "patch_size": 8 if vit else 4,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L1", "channel": 3},
            },
            **algorithm,
        }
    )
    model.init_weights()
    return model


def simmim_batch(vit: bool) -> tuple[torch.Tensor, list[DataSample]]:
    """Images and masks of whole 32 px (Swin) or 8 px (ViT) units."""
    images = torch.rand(4, 3, 64, 64)
    cells = 8 if vit else 2
    units = torch.rand(4, cells, cells).flatten(1).argsort(dim=1).view(4, cells, cells)
    mask = (units >= cells * cells // 4).float()
    if not vit:
        mask = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)
    samples = [DataSample() for _ in mask]
    for sample, one in zip(samples, mask, strict=True):
        sample.set_field(one, "mask")
    return images, samples


@pytest.mark.parametrize("vit", [False, True], ids=["swin", "vit"])
@pytest.mark.parametrize(
    "algorithm",
    [
        {"type": "RegularizedSimMIM"},
        {"type": "USimMIM", "uniformity_weight": 0.0, "token": "mean"},
    ],
    ids=["none", "weight 0"],
)
def test_simmim_with_weight_zero_equals_stock_bit_for_bit(algorithm: dict, vit: bool) -> None:
    weights = []
    for config in ({"type": "SimMIM"}, algorithm):
        model = build_simmim(config, vit)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(1)
        for _ in range(20):
            loss, _ = model.parse_losses(model.loss(*simmim_batch(vit)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights.append(model.state_dict())
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_simmim_terms_see_the_class_token_or_the_visible_cells() -> None:
    for vit, token in ((True, "cls"), (True, "mean"), (False, "mean")):
        model = build_simmim({"type": "USimMIM", "uniformity_weight": 0.5, "token": token}, vit)
        model.eval()  # Swin drops paths at random in training
        images, samples = simmim_batch(vit)
        losses = model.loss(images, samples)
        mask = torch.stack([sample.mask for sample in samples])
        features = model.backbone(images, mask)
        if token == "cls":
            feature = features[1][:, 0]
        else:
            visible = 1 - (mask if vit else mask[:, ::8, ::8])
            feature = torch.stack(
                [f[:, v.bool()].mean(dim=1) for f, v in zip(features[0], visible, strict=True)]
            )
        cosine = torch.nn.functional.cosine_similarity(feature[:, None], feature[None], dim=2)
        expected = 0.5 * cosine.square().mean().item()
        assert losses["loss_uniformity"].item() == pytest.approx(expected, rel=1e-5)


def test_simmim_vit_is_the_stock_vit_with_mask_tokens() -> None:
    model = build_simmim({"type": "SimMIM"}, vit=True).backbone
    stock = VisionTransformer(arch=ARCH, img_size=64, patch_size=8, out_type="raw")
    missing = stock.load_state_dict(model.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert missing.unexpected_keys == ["mask_token"]
    images = torch.rand(2, 3, 64, 64)
    whole = model(images, torch.zeros(2, 8, 8))[1]
    assert torch.equal(whole, stock(images)[0])
    assert torch.equal(whole, model(images)[0])
    # what lies under the mask has no influence
    mask = torch.zeros(2, 8, 8)
    mask[:, 2:5] = 1
    other = images.clone()
    other[:, :, 16:40] = torch.rand(2, 3, 24, 64)
    assert torch.equal(model(images, mask)[0], model(other, mask)[0])
    assert not torch.equal(model(images, mask)[1], whole)


def test_simmim_vit_without_class_token() -> None:
    algorithm = {"type": "USimMIM", "uniformity_weight": 0.5, "token": "mean"}
    model = build_simmim(algorithm, vit=True, with_cls_token=False)
    images, samples = simmim_batch(vit=True)
    loss = model.loss(images, samples)["loss_uniformity"]
    mask = torch.stack([sample.mask for sample in samples])
    maps = model.backbone(images, mask)[0]
    rows = [f[:, m == 0].mean(dim=1) for f, m in zip(maps, mask, strict=True)]
    torch.testing.assert_close(loss, 0.5 * uniformity(torch.stack(rows)))
    with pytest.raises(ValueError, match="uniformity has token='cls', but the encoder has no"):
        build_simmim({"type": "USimMIM"}, vit=True, with_cls_token=False)


def test_simmim_rejects_a_class_token_that_is_not_there() -> None:
    with pytest.raises(
        ValueError, match="uniformity has token='cls', but the encoder has no class"
    ):
        build_simmim({"type": "USimMIM"}, vit=False)
    build_simmim({"type": "USimMIM", "uniformity_weight": 0.0}, vit=False)  # nothing asks for it
    with pytest.raises(TypeError, match="takes no out_type, got 'featmap'"):
        SimMIMViT(arch=ARCH, out_type="featmap")


def test_each_algorithm_wants_backbones_of_its_kind() -> None:
    swin = "must be one of MAE, .*got SimMIMSwinTransformer: use RegularizedSimMIM, USimMIM"
    with pytest.raises(TypeError, match=swin):
        build_simmim({"type": "RegularizedMAE"}, vit=False)
    with pytest.raises(TypeError, match="got SimMIMViT: use RegularizedSimMIM, USimMIM"):
        build_simmim({"type": "UMAE"}, vit=True)
    with pytest.raises(TypeError, match="must be one of SimMIM, .*got MAEViT: use RegularizedMAE"):
        build("MAEViT", {"type": "USimMIM"})
