"""The analyzer on stock configs, run by mmengine's Runner."""

import json
from pathlib import Path

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")

import torch
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader

from mim_plugins.analysis import LatentHierarchy, mask_abstraction, reconstruction_scores
from mim_plugins.mmpretrain import HierarchicalMaskingAnalyzer, reconstruct

from ..algorithms import build_runner

MAE = "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py"
SIMMIM = "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py"
BEIT = "beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py"


class Spy(Hook):
    """Notes masks independently: what backbones return, or the data samples hold."""

    def __init__(self) -> None:
        self.masks: list[torch.Tensor] = []
        self.images: list[torch.Tensor] = []
        self.scores: dict[str, float] = {}

    def before_train(self, runner) -> None:
        def see(module, args, output) -> None:
            if len(args) > 1 and isinstance(args[1], torch.Tensor):
                self.masks.append(args[1].bool())
            elif isinstance(output, tuple):
                self.masks.append(output[1].bool().view(-1, 14, 14))
            self.images.append(args[0])

        self.handle = runner.model.backbone.register_forward_hook(see)

    def after_train_epoch(self, runner) -> None:
        self.handle.remove()  # what follows are not training steps
        if runner.epoch == 0:
            runner.model.eval()
            pair = reconstruct(runner.model, self.images[0])
            runner.model.train()
            self.scores = {k: v.mean().item() for k, v in reconstruction_scores(*pair).items()}


@pytest.mark.parametrize("name", [MAE, SIMMIM])
def test_reports_the_masks_of_the_run(name: str, photo_folder: Path, tmp_path: Path) -> None:
    runner = build_runner(name, photo_folder, tmp_path / "run")
    spy, analyzer = Spy(), HierarchicalMaskingAnalyzer()
    runner.register_hook(spy, priority="HIGHEST")
    runner.register_hook(analyzer)
    runner.train()
    lines = (Path(runner.log_dir) / "vis_data/hierarchical_masking.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert (first["step"], second["step"], first["masks"]) == (1, 2, 8)
    masks = torch.cat(spy.masks)  # of the first epoch
    assert len(masks) == 8
    hierarchy = LatentHierarchy.quadtree(tuple(masks.shape[1:]))
    expected = mask_abstraction(hierarchy, masks.flatten(1))
    assert first["height"] == pytest.approx(expected.height.mean().item())
    assert first["size"] == pytest.approx(expected.size.mean().item())
    assert first["mask_ratio"] == pytest.approx(masks.double().mean().item())
    for key, value in spy.scores.items():
        assert first[key] == pytest.approx(value, rel=1e-4)
    assert runner.message_hub.get_scalar("analysis/height").current() == second["height"]
    checkpoint = CheckpointLoader.load_checkpoint(str(tmp_path / "run/epoch_2.pth"), "cpu")
    assert checkpoint["hierarchical_masking"] == [first, second]


def test_masks_of_other_algorithms_without_scores(photo_folder: Path, tmp_path: Path) -> None:
    runner = build_runner(BEIT, photo_folder, tmp_path / "run")
    analyzer = HierarchicalMaskingAnalyzer(interval=1, by_epoch=False, num_masks=4)
    runner.register_hook(analyzer)
    runner.train()
    assert len(analyzer.history.entries) == 4
    assert all(entry["masks"] == 4 and "mse" not in entry for entry in analyzer.history.entries)
    assert 0.2 < analyzer.history.entries[0]["mask_ratio"] < 0.5


@pytest.mark.parametrize("name", [MAE, SIMMIM])
def test_training_is_bit_for_bit_the_same(name: str, photo_folder: Path, tmp_path: Path) -> None:
    states = []
    for label in ("without", "with"):
        runner = build_runner(name, photo_folder, tmp_path / label)
        if label == "with":
            runner.register_hook(HierarchicalMaskingAnalyzer(interval=1, by_epoch=False))
        runner.train()
        states.append((runner.model.state_dict(), torch.get_rng_state()))
    (first, rng), (second, other_rng) = states
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(rng, other_rng)


def test_resumes_its_history(photo_folder: Path, tmp_path: Path) -> None:
    hook = [{"type": "HierarchicalMaskingAnalyzer", "num_images": 0}]
    runner = build_runner(MAE, photo_folder, tmp_path / "run", custom_hooks=hook)
    runner.train()
    more = {"resume": True, "load_from": str(tmp_path / "run/epoch_2.pth")}
    more |= {"train_cfg.max_epochs": 3}
    resumed = build_runner(MAE, photo_folder, tmp_path / "more", custom_hooks=hook, **more)
    resumed.train()
    analyzer = next(h for h in resumed.hooks if isinstance(h, HierarchicalMaskingAnalyzer))
    assert [entry["step"] for entry in analyzer.history.entries] == [1, 2, 3]
    assert "ssim" not in analyzer.history.entries[-1]


@pytest.mark.parametrize(
    "arguments", [{"interval": 0}, {"num_masks": 0}, {"num_images": -1}, {"branching": 1}]
)
def test_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        HierarchicalMaskingAnalyzer(**arguments)
