"""The analyzer as a Lightning callback on modules of lightly's shape."""

import json
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")
pytest.importorskip("piq", reason="piq is not installed")

import pytorch_lightning as pl
import torch
from lightly.models import utils

from mim_plugins.analysis import LatentHierarchy, mask_abstraction
from mim_plugins.lightly import HierarchicalMaskingAnalyzer, wrap
from mim_plugins.lightly.analysis.reconstruction import reconstruct
from mim_plugins.lightly.watch import MaskWatch
from mim_plugins.masking import RandomMasking

from ..modules import MAE, Unmasked
from ..regularizers.test_boundary import SimMIM as TorchvisionSimMIM

FLAT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class SimMIM(TorchvisionSimMIM):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def fit(model: pl.LightningModule, out: Path, *callbacks: pl.Callback) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(
        images, batch_size=4, collate_fn=lambda b: ([torch.stack(b)], torch.zeros(4), ["a"] * 4)
    )
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, default_root_dir=out,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(model, loader)
    return trainer


def lines(out: Path) -> list[dict]:
    return [json.loads(x) for x in (out / "hierarchical_masking.jsonl").read_text().splitlines()]


def test_reports_the_masks_of_mae(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MAE()
    trainer = fit(model, tmp_path, HierarchicalMaskingAnalyzer(**FLAT))
    first, second = lines(tmp_path)
    assert (first["step"], first["iter"], second["step"], second["iter"]) == (1, 2, 2, 4)
    idx_keep = torch.cat(model.seen[:2])
    mask = torch.ones(8, 65).bool().scatter(1, idx_keep, False)[:, 1:]
    expected = mask_abstraction(LatentHierarchy.quadtree((8, 8)), mask)
    assert first["masks"] == 8
    assert first["height"] == pytest.approx(expected.height.mean().item())
    assert first["mask_ratio"] == pytest.approx(mask.double().mean().item())
    assert trainer.callback_metrics["analysis/height"].item() == pytest.approx(second["height"])
    assert -1 < first["ssim"] < 1
    assert second["mse"] < first["mse"]
    assert "preprocess" not in vars(model.backbone)


def test_simmim_of_torchvision_and_wrapped_units(tmp_path: Path) -> None:
    fit(SimMIM(), tmp_path / "simmim", HierarchicalMaskingAnalyzer(**FLAT))
    entry = lines(tmp_path / "simmim")[0]
    assert entry["mask_ratio"] == pytest.approx(0.75, abs=0.1)
    assert "fsim" in entry
    model = wrap(MAE(), masking=RandomMasking(mask_ratio=0.75, patch_size=4, mask_unit=8))
    fit(model, tmp_path / "mae", HierarchicalMaskingAnalyzer(num_images=0))
    entry = lines(tmp_path / "mae")[0]
    assert entry["mask_ratio"] == 0.75
    assert entry["lowest"] >= 2  # a unit is a block of the quadtree
    assert "fsim" not in entry


def test_training_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    states = []
    for label, callbacks in (("without", []), ("with", [HierarchicalMaskingAnalyzer(**FLAT)])):
        torch.manual_seed(0)
        model = MAE()
        fit(model, tmp_path / label, *callbacks)
        states.append((model.state_dict(), torch.get_rng_state()))
    (first, rng), (second, other_rng) = states
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(rng, other_rng)


def test_reconstruction_predicts_every_patch_from_every_patch() -> None:
    torch.manual_seed(0)
    model = MAE().eval()
    images = torch.rand(2, 3, 32, 32)
    predicted, same = reconstruct(model, images, **FLAT)
    assert torch.equal(same, images)
    # By hand: the decoder is given all tokens, and no mask token.
    tokens = model.decoder_embed(model.backbone.encode(images))
    patches = model.prediction_head(model.decoder(tokens))[:, 1:]
    torch.testing.assert_close(utils.patchify(predicted, 4), patches)
    changed = images.clone()
    changed[:, :, :4, :4] = 0  # one patch bears on the prediction of all others
    moved = reconstruct(model, changed, **FLAT)[0] != predicted
    assert moved.float().mean() > 0.99  # but for ties
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    scaled = reconstruct(model, images, mean, std)[0]
    expected = predicted * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    torch.testing.assert_close(scaled, expected)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_images"):
        HierarchicalMaskingAnalyzer(num_images=-1)
    with pytest.raises(ValueError, match="every_n_epochs"):
        HierarchicalMaskingAnalyzer(every_n_epochs=0)
    with pytest.raises(TypeError, match="MaskedVisionTransformer"):
        HierarchicalMaskingAnalyzer().on_train_start(None, Unmasked())
    with pytest.raises(TypeError, match="linear decoder"):
        reconstruct(Unmasked(), torch.rand(1, 3, 32, 32))


def test_watches_may_be_removed_in_any_order() -> None:
    encoder = MAE().backbone
    images = torch.rand(1, 3, 32, 32)
    idx_keep = torch.arange(17)[None]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)):
        calls: list[list] = [[], [], []]
        watches = [MaskWatch(encoder, lambda *seen, mine=mine: mine.append(seen)) for mine in calls]
        left = {0, 1, 2}
        for removed in order:
            watches[removed].remove()
            left.remove(removed)
            for each in calls:
                each.clear()
            encoder.encode(images, idx_keep=idx_keep)
            assert [len(each) for each in calls] == [number in left for number in range(3)]
        assert "preprocess" not in vars(encoder)


def test_a_watch_gives_back_what_was_there() -> None:
    """The user's own method of the instance, not the class's."""
    encoder = MAE().backbone
    own = encoder.preprocess = partial(type(encoder).preprocess, encoder)
    first, second = (MaskWatch(encoder, print) for _ in range(2))
    first.remove()
    second.remove()
    assert encoder.preprocess is own
