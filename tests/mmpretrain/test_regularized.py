"""RegularizedMAE and UMAE beside the stock MAE."""

from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch

from mim_plugins.mmpretrain import UMAE

from .models import build, train


def terms(weight: float, **arguments: object) -> dict:
    return {
        "type": "RegularizedMAE",
        "regularizers": [{"type": "UniformityHead", "weight": weight, **arguments}],
    }


@pytest.mark.parametrize(
    "algorithm",
    [{"type": "RegularizedMAE"}, terms(0.0), {"type": "UMAE", "uniformity_weight": 0.0}],
    ids=["none", "weight 0", "UMAE 0"],
)
def test_weight_zero_equals_stock_bit_for_bit(algorithm: dict) -> None:
    stock, ours = build("MAEViT"), build("MAEViT", algorithm)
    assert train(ours) == train(stock)
    weights = stock.state_dict()
    assert list(ours.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[key]) for key, value in ours.state_dict().items())


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
    plain = build("MaskedMAEViT", mask_generator=generator)
    regularized = build("MaskedMAEViT", terms(1.0), mask_generator=generator)
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

    from ..upstream.tools import CROP, IMPORT, RUNTIME, TINY_MAE, loader

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
    with pytest.raises(ValueError, match="regularizers must be of different types"):
        build(
            "MAEViT", {"type": "RegularizedMAE", "regularizers": [{"type": "UniformityHead"}] * 2}
        )
    with pytest.raises(ValueError, match="weight must be finite and at least 0, got -1"):
        build("MAEViT", terms(-1))
    with pytest.raises(ValueError, match="token"):
        build("MAEViT", terms(1.0, token="max"))
