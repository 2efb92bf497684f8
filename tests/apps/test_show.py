"""``show`` on checkpoints of lightly and transformers; those of mmpretrain are in test_report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")

import torch
from PIL import Image
from torch import Tensor

from mim_plugins.__main__ import main
from mim_plugins.apps.photos import load_photo
from mim_plugins.apps.show import framework_of

IMAGENET = (
    torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{name}.png" for name in ("coffee", "chelsea")]
    for path in paths:
        Image.fromarray(load_photo(path.stem)).save(path)
    return [str(path) for path in paths]


def columns(path: Path, side: int, rows: int = 2) -> list[Tensor]:
    """The four pictures of each row, ``(rows, 3, side, side)`` in 0..1, not enlarged."""
    with Image.open(path) as picture:
        assert picture.size == (4 * side + 6, rows * side + 2 * (rows - 1))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    pixels = torch.nn.functional.pad(pixels, (0, 2, 0, 2))
    grid = pixels.view(3, rows, side + 2, 4, side + 2).permute(3, 1, 0, 2, 4)
    return list(grid[..., :side, :side])


def resized(photos: list[str], side: int) -> Tensor:
    images = [Image.open(p).resize((side, side), Image.Resampling.BICUBIC) for p in photos]
    return torch.stack([torch.from_numpy(np.array(i)) for i in images]).permute(0, 3, 1, 2) / 255


def check(found: list[Tensor], images: Tensor, mask: Tensor, predicted: Tensor) -> None:
    """``mask (B, 1, H, W)`` True = removed; ``predicted`` in pixels, to be clipped."""
    images, predicted = images.clamp(0, 1), predicted.clamp(0, 1)
    expected = [images, images.where(~mask, torch.tensor(0.5))]
    expected += [images.where(~mask, predicted), predicted]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1.1 / 255, rtol=0)


# -- lightly -------------------------------------------------------------------------------


def make_mae(norm_pix: bool = False) -> Any:
    pytest.importorskip("lightly", reason="lightly is not installed")
    from examples_lightly.mae_dpp import MAE

    torch.manual_seed(0)
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    return MAE(96, 16, shape=shape, decoder=(16, 1, 2), norm_pix=norm_pix)


def save_checkpoint(module: Any, path: Path) -> None:
    """As Lightning's own trainer does."""
    from pytorch_lightning import Trainer

    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, max_steps=1,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    data = [([torch.rand(3, 96, 96)], 0, "")] * 2
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    trainer.save_checkpoint(path)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_lightly_s_mae(norm_pix: bool, photos: list[str], tmp_path: Path) -> None:
    """Against the module's own parts, with the masks of the same seed."""
    module, path, out = make_mae(), tmp_path / "last.ckpt", tmp_path / "show.png"
    save_checkpoint(module, path)
    assert framework_of(path) == "lightly"
    options = ["--heads", "4", "2", "--out", str(out), "--seed", "3"]
    assert main(["show", str(path), *photos, *options, *["--norm-pix"] * norm_pix]) == 0

    from lightly.models import utils

    images = resized(photos, 96)
    mean, std = IMAGENET
    inputs = (images - mean) / std
    module.eval()
    torch.manual_seed(3)
    idx_keep, idx_mask = utils.random_token_mask((2, 37), 0.75)
    with torch.no_grad():
        encoded = module.backbone.encode(images=inputs, idx_keep=idx_keep)
        every = torch.arange(1, 37).expand(2, -1)
        tokens = utils.set_at_index(torch.zeros(2, 37, 16), idx_keep, module.decoder_embed(encoded))
        decoded = module.decoder(tokens, idx_mask=idx_mask)
        predicted = module.prediction_head(utils.get_at_index(decoded, every))
    if norm_pix:
        patches = utils.patchify(inputs, 16)
        predicted = predicted * patches.std(2, keepdim=True) + patches.mean(2, keepdim=True)
    predicted = torch.einsum("nhwpqc->nchpwq", predicted.view(2, 6, 6, 16, 16, 3))
    predicted = predicted.reshape(2, 3, 96, 96) * std + mean
    mask = torch.zeros(2, 37, dtype=torch.bool).scatter(1, idx_mask, True)[:, 1:]
    mask = mask.view(2, 1, 6, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)
    check(columns(out, 96), images, mask, predicted)


def test_lightly_s_old_decoder(photos: list[str], tmp_path: Path) -> None:
    """The names of ``MAEDecoderTIMM``, of lightly before 1.6."""
    pytest.importorskip("lightly", reason="lightly is not installed")
    masked_autoencoder_timm = pytest.importorskip("lightly.models.modules.masked_autoencoder_timm")
    new, old = make_mae(), torch.nn.Module()
    old.backbone = new.backbone
    old.decoder = masked_autoencoder_timm.MAEDecoderTIMM(
        num_patches=36, patch_size=16, embed_dim=32, decoder_embed_dim=16, decoder_depth=1,
        decoder_num_heads=2,
    )  # fmt: skip
    new.decoder_embed.load_state_dict(old.decoder.decoder_embed.state_dict())
    new.decoder.blocks.load_state_dict(old.decoder.decoder_blocks.state_dict())
    new.decoder.norm.load_state_dict(old.decoder.decoder_norm.state_dict())
    new.prediction_head.load_state_dict(old.decoder.decoder_pred.state_dict())
    new.decoder.mask_token = old.decoder.mask_token
    new.decoder.pos_embed = old.decoder.decoder_pos_embed
    pictures = []
    for name, module in (("new", new), ("old", old)):
        saved = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0"}
        torch.save(saved, tmp_path / f"{name}.ckpt")
        out = tmp_path / f"{name}.png"
        arguments = [str(tmp_path / f"{name}.ckpt"), *photos, "--heads", "4", "2"]
        assert main(["show", *arguments, "--out", str(out)]) == 0
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]


def test_what_lightly_s_weights_do_not_tell(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    module = make_mae()
    weights = module.state_dict()

    def fails(state: dict, *options: str, **more: Any) -> str:
        path = tmp_path / "odd.ckpt"
        torch.save({"state_dict": state, "pytorch-lightning_version": "2.6.0", **more}, path)
        with pytest.raises(SystemExit) as error:
            main(["show", str(path), *photos, *options, "--out", str(tmp_path / "no.png")])
        assert error.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    heads = ("--heads", "4", "2")
    assert "width 32 and a decoder of width 16, whose numbers of attention heads" in fails(weights)
    assert "heads must divide the width 32, got 5" in fails(weights, "--heads", "5", "2")
    moco = {"backbone.conv1.weight": torch.zeros(3)}
    assert "must hold lightly's MAE" in fails(moco, *heads)
    odd = {**weights, "backbone.vit.rope.weight": torch.zeros(3)}
    assert "is no MAE with a plain ViT of timm" in fails(odd, *heads)
    nan = {**weights, "prediction_head.bias": torch.full((768,), torch.nan)}
    assert "must be finite" in fails(nan, *heads)
    assert "holds more than numbers" in fails(weights, *heads, hyper_parameters={"a": Path("b")})
    assert not (tmp_path / "no.png").exists()


# -- transformers --------------------------------------------------------------------------


@pytest.mark.parametrize("norm_pix", [False, True])
def test_mae_of_transformers(
    norm_pix: bool, photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        image_size=96, patch_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=32, norm_pix_loss=norm_pix,
        mask_ratio=0.5,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config).eval()
    folder, out = tmp_path / "model", tmp_path / "show.png"
    model.save_pretrained(folder)
    assert framework_of(folder) == "transformers"
    assert main(["show", str(folder), *photos, "--out", str(out), "--seed", "3"]) == 0
    assert "normalised by ImageNet's mean and std" in capsys.readouterr().err

    def expected(mean: Any, std: Any) -> tuple[Tensor, Tensor, Tensor]:
        images = resized(photos, 96)
        inputs = (images - mean) / std
        torch.manual_seed(3)
        with torch.no_grad():
            output = model(inputs)
        predicted, patches = output.logits, model.patchify(inputs)
        if norm_pix:
            predicted = predicted * patches.std(2, keepdim=True) + patches.mean(2, keepdim=True)
        mask = model.unpatchify(output.mask[:, :, None].expand(-1, -1, 768)).bool()
        return images, mask[:, :1], model.unpatchify(predicted) * std + mean

    check(columns(out, 96), *expected(*IMAGENET))
    half = [0.5] * 3
    transformers.ViTImageProcessor(image_mean=half, image_std=half).save_pretrained(folder)
    assert main(["show", str(folder), *photos, "--out", str(out), "--seed", "3"]) == 0
    assert "ImageNet" not in capsys.readouterr().err
    check(columns(out, 96), *expected(0.5, 0.5))

    for change, said in (
        ({"model_type": "vit"}, "must hold a ViTMAEForPreTraining"),
        ({"num_hidden_layers": 2}, "lacks 16 weights"),
    ):
        text = (folder / "config.json").read_text()
        key, value = next(iter(change.items()))
        before = {"model_type": '"vit_mae"', "num_hidden_layers": "1"}[key]
        after = f'"{value}"' if isinstance(value, str) else str(value)
        assert f'  "{key}": {before}' in text
        (folder / "config.json").write_text(
            text.replace(f'  "{key}": {before}', f'  "{key}": {after}')
        )
        with pytest.raises(SystemExit):
            main(["show", str(folder), *photos, "--out", str(out)])
        assert said in capsys.readouterr().err.splitlines()[-1]
        (folder / "config.json").write_text(text)
    with pytest.raises(SystemExit):
        main(["show", str(folder / "model.safetensors"), *photos])
    assert "give its folder, with config.json" in capsys.readouterr().err
