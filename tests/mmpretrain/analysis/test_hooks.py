import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")

import torch
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.registry import HOOKS
from PIL import Image
from torch import Tensor, nn

from mim_plugins.analysis import effective_rank, monitors
from mim_plugins.analysis.online_probe import FeatureProbe
from mim_plugins.mmpretrain.analysis import features as features_module
from mim_plugins.mmpretrain.analysis.features import extract_features, preprocess, unwrap

from ...figures import none_left
from ...two_processes import TwoProcesses
from ..algorithms import CONTRASTIVE, MASKED, build_runner

MAE = next(iter(MASKED))
SIMMIM = next(name for name in MASKED if name.startswith("simmim"))
MOCO = next(iter(CONTRASTIVE))
PIXELS = ("mae/", "mff/", "mixmim/", "simmim/", "spark/", "itpn/")


def loader(photos: Path, split: str = "test", images: int = 13, size: int = 224) -> dict:
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "ResizeEdge", "scale": size},
        {"type": "PackInputs"},
    ]
    dataset = {
        "type": "CustomDataset",
        "data_root": str(photos),
        "data_prefix": split,
        "indices": list(range(0, 4 * images, 4)),
        "pipeline": pipeline,
    }
    return {"batch_size": 5, "dataset": dataset}


def all_hooks(photos: Path, name: str) -> list[dict]:
    size = 192 if name == SIMMIM else 224
    hooks = [
        {"type": "EffectiveRankHook", "num_images": 4},
        {"type": "OnlineProbeHook", "val_dataloader": loader(photos, images=6, size=size)},
        {"type": "MaskVisualizationHook", "num_images": 2},
    ]
    return hooks[: 3 if name in MASKED else 2]


def run(name: str, photos: Path, work_dir: Path, *hooks: dict, **options: object) -> Runner:
    small = {"images": 4, "batch": 2, "train_cfg.max_epochs": 1, **options}
    runner = build_runner(name, photos, work_dir, **small)
    for hook in hooks:
        runner.register_hook(HOOKS.build(hook))
    runner.train()
    return runner


def weights(runner: Runner) -> dict[str, Tensor]:
    return unwrap(runner.model).state_dict()


def assert_same(one: Runner, other: Runner) -> None:
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    state = other.optim_wrapper.optimizer.state_dict()["state"]
    for key, value in one.optim_wrapper.optimizer.state_dict()["state"].items():
        assert torch.equal(value["exp_avg"], state[key]["exp_avg"])


TRAINED = [*MASKED, *list(CONTRASTIVE)[:4]]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_training_stays_bit_for_bit(name: str, photo_folder: Path, tmp_path: Path) -> None:
    """Every masked algorithm and MoCo, BYOL, SimCLR, SimSiam, with all hooks and without."""
    plain = run(name, photo_folder, tmp_path / "plain")
    hooks = all_hooks(photo_folder, name)
    watched = run(name, photo_folder, tmp_path / "watched", *hooks)
    assert_same(plain, watched)
    hub = watched.message_hub
    ranks = hub.get_scalar("analysis/effective_rank").data[0]
    assert len(ranks) == 2
    assert all(1 <= rank <= 4 for rank in ranks)
    assert np.isfinite(hub.get_scalar("train/probe_loss").current())
    for metric in ("probe/linear_top1", "probe/knn_top1"):
        assert 0 <= hub.get_scalar(metric).current() <= 100
    if name in MASKED:
        picture = Image.open(next(tmp_path.glob("watched/*/vis_data/vis_image/masks_1.png")))
        columns = 4 if name.startswith(PIXELS) else 2
        side = 192 if name == SIMMIM else 224
        assert picture.size == (columns * (side + 2) - 2, 2 * (side + 2) - 2)


@pytest.mark.parametrize("guard", ["observing", "preserve_rng"])
def test_the_comparison_would_notice(
    guard: str, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(key for key in CONTRASTIVE if key.startswith("simsiam"))
    plain = run(name, photo_folder, tmp_path / "plain")
    if guard == "observing":
        monkeypatch.setattr(features_module, "observing", lambda model: torch.no_grad())
    else:
        monkeypatch.setattr(monitors, "preserve_rng", lambda seed=None: nullcontext())
    hooks = all_hooks(photo_folder, name)
    watched = run(name, photo_folder, tmp_path / "watched", *hooks)
    with pytest.raises(AssertionError):
        assert_same(plain, watched)


@pytest.mark.parametrize("name", [*MASKED, *CONTRASTIVE])
def test_features_are_of_whole_images(name: str, photo_folder: Path, tmp_path: Path) -> None:
    """Every algorithm of mmpretrain 1.2: nothing is masked, nothing random, nothing changed."""
    runner = build_runner(name, photo_folder, tmp_path, images=4, batch=2)
    model = runner.model
    model.init_weights()
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():  # untrained, SimMIM's mask token, say, would be zero
        for parameter in model.backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    side = 192 if name == SIMMIM else 224
    images = torch.randn(2, 3, side, side)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    features = extract_features(runner, images)
    assert torch.equal(state, torch.get_rng_state())
    assert features.shape[0] == 2
    assert features.ndim == 2
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.manual_seed(5)
    assert torch.equal(features, extract_features(runner, images))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert modes == [module.training for module in model.modules()]
    # No patch is hidden: a change of any corner is seen.
    for rows in (slice(0, 32), slice(side - 32, side)):
        for columns in (slice(0, 32), slice(side - 32, side)):
            changed = images.clone()
            changed[:, :, rows, columns] += 3
            assert (extract_features(runner, changed) - features).abs().amax(1).min() > 1e-6
    # Features of one image do not depend on the others, as those of a mixture would.
    alone = extract_features(runner, images[:1])
    torch.testing.assert_close(alone, features[:1], atol=1e-4, rtol=1e-4)


def test_rank_and_spectrum_are_those_of_the_backbone(photo_folder: Path, tmp_path: Path) -> None:
    hook = {"type": "EffectiveRankHook", "num_images": 12, "batch_size": 5, "token": "cls"}
    hook |= {"dataloader": loader(photo_folder)}
    with none_left():
        runner = run(MAE, photo_folder, tmp_path, hook, **{"train_cfg.max_epochs": 3})
    lines = next(tmp_path.glob("*/vis_data/singular_spectrum.jsonl")).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3]
    assert [entry["iter"] for entry in entries] == [0, 2, 4, 6]
    built = runner.build_dataloader(
        {**loader(photo_folder), "sampler": {"type": "DefaultSampler", "shuffle": False},
         "collate_fn": {"type": "default_collate"}, "num_workers": 0}
    )  # fmt: skip
    images = torch.cat([preprocess(runner.model, batch)[0] for batch in built])[
        torch.linspace(0, 12, 12).long()
    ]
    with torch.no_grad():
        tokens = runner.model.eval().backbone(images, mask=None)[-1]
    expected = effective_rank(tokens[:, 0])
    assert entries[-1]["effective_rank"] == pytest.approx(expected, rel=1e-5)
    assert sum(entries[-1]["singular_spectrum"]) == pytest.approx(1)
    scalars = next(tmp_path.glob("*/vis_data/scalars.json")).read_text()
    assert scalars.count("analysis/effective_rank") == 4
    assert len(list(tmp_path.glob("*/vis_data/vis_image/singular_spectrum_*.png"))) == 4


def test_probe_learns_and_evaluates(photo_folder: Path, tmp_path: Path) -> None:
    """Training images that are also the validation images can be told apart."""
    val = loader(photo_folder, "train", images=30, size=64)
    hook = {
        "type": "OnlineProbeHook",
        "val_dataloader": val,
        "bank_dataloader": val,
        "knn_k": 1,
        "linear_interval": 2,
        "interval": 4,
        "optimizer": {"type": "SGD", "lr": 0.1},
        "token": "mean",
    }
    options = {"images": 30, "batch": 10, "train_cfg.max_epochs": 10}
    options |= {"model.backbone.img_size": 64, "model.backbone.patch_size": 8}
    options |= {"model.neck.num_patches": 64, "model.neck.patch_size": 8}
    options |= {"model.head.patch_size": 8, "train_dataloader.dataset.pipeline.1.scale": 64}
    runner = build_runner(MAE, photo_folder, tmp_path, **options)
    probe = HOOKS.build(hook)
    runner.register_hook(probe)
    runner.train()
    hub = runner.message_hub
    assert len(hub.get_scalar("probe/linear_top1").data[0]) == 3  # epochs 4, 8 and 10
    assert hub.get_scalar("probe/knn_top1").current() == 100  # each is its own neighbour
    assert hub.get_scalar("probe/linear_top1").current() > 30
    losses = hub.get_scalar("train/probe_loss").data[0]
    assert losses[-1] < losses[0]
    optimizer = probe.probe.classifier.optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert probe.probe.num_classes == 15


class Recorder(Hook):
    """Keeps the masks that a model returned and the images it got, by a hook of its own."""

    def before_train(self, runner: Runner) -> None:
        self.masks: list[Tensor] = []
        runner.model.backbone.register_forward_hook(
            lambda module, args, output: self.masks.append(output[1])
        )


def test_probe_learns_from_masked_images_if_asked(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same steps twice, the hook changing nothing in them: only its features differ."""
    seen: list[Tensor] = []

    def step(probe: FeatureProbe, features: Tensor, labels: Tensor) -> dict:
        seen.append(features)
        return {}

    monkeypatch.setattr(FeatureProbe, "step", step)
    for masked in (False, False, True):
        hook = {"type": "OnlineProbeHook", "num_classes": 15, "masked": masked}
        run(MAE, photo_folder, tmp_path / str(len(seen)), hook)
    assert len(seen) == 6
    for whole, again, masked in zip(seen[:2], seen[2:4], seen[4:], strict=True):
        assert torch.equal(whole, again)
        assert whole.shape == masked.shape
        assert (whole - masked).abs().amax() > 1e-3


def test_picture_shows_the_masks_of_the_step(photo_folder: Path, tmp_path: Path) -> None:
    runner = build_runner(
        MAE, photo_folder, tmp_path, images=4, batch=4,
        visualizer={
            "type": "UniversalVisualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
    )  # fmt: skip
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.register_hook(
        HOOKS.build({"type": "MaskVisualizationHook", "num_images": 3, "interval": 2})
    )
    runner.train()
    files = sorted(path.name for path in tmp_path.glob("*/vis_data/vis_image/*.png"))
    assert files == ["masks_1.png", "masks_2.png"]  # the second is the last epoch
    for step, name in enumerate(files):
        path = next(tmp_path.glob(f"*/vis_data/vis_image/{name}"))
        picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
        original, masked, filled, predicted = (
            picture[:, 226 * column :][:, :224] for column in range(4)
        )
        for row in range(3):
            rows = slice(226 * row, 226 * row + 224)
            mask = recorder.masks[step][row].view(14, 14).bool().numpy()
            where = mask.repeat(16, 0).repeat(16, 1)
            assert (masked[rows][where] == 128).all()
            assert (masked[rows][~where] == original[rows][~where]).all()
            assert (filled[rows][~where] == original[rows][~where]).all()
            assert (filled[rows][where] == predicted[rows][where]).all()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.glob("*/vis_data")))).Reload()
    assert [image.step for image in events.Images("masks")] == [1, 2]


def test_reconstruction_inverts_the_target(photo_folder: Path, tmp_path: Path) -> None:
    """A model that predicts its target perfectly must be shown as the image itself."""
    from mim_plugins.mmpretrain.analysis.reconstruction import step_reconstruction

    for name in (MAE, next(key for key in MASKED if key.startswith("spark"))):
        model = build_runner(name, photo_folder, tmp_path, images=4, batch=2).model
        images = torch.randn(2, 3, 224, 224)
        target = model.head.construct_target(images)
        if name != MAE:  # SparK's neck gives images
            side = model.head.patch_size
            target = nn.functional.fold(
                target.view(2, -1, side * side, 3).permute(0, 3, 2, 1).flatten(1, 2),
                224, side, stride=side,
            )  # fmt: skip
        shown = step_reconstruction(model, images, {"neck": target})
        torch.testing.assert_close(shown, images, atol=1e-4, rtol=1e-4)


def test_resumed_run_equals_one_run(photo_folder: Path, tmp_path: Path) -> None:
    hooks = [{"type": "EffectiveRankHook", "num_images": 4}, {"type": "OnlineProbeHook"}]
    whole = [HOOKS.build(hook) for hook in hooks]
    half = [HOOKS.build(hook) for hook in hooks]
    options = {"images": 4, "batch": 2, "train_cfg.max_epochs": 2}
    options |= {"randomness": {"seed": 0, "deterministic": True}}
    runner = build_runner(MAE, photo_folder, tmp_path / "whole", **options)
    for hook in whole:
        runner.register_hook(hook)
    runner.train()
    checkpoint = CheckpointLoader.load_checkpoint(str(tmp_path / "whole/epoch_1.pth"), "cpu")
    assert not any("probe" in key for key in checkpoint["state_dict"])
    assert set(checkpoint) >= {"online_probe", "effective_rank"}
    runner = build_runner(
        MAE, photo_folder, tmp_path / "half", **options, resume=True,
        load_from=str(tmp_path / "whole/epoch_1.pth"),
    )  # fmt: skip
    for hook in half:
        runner.register_hook(hook)
    runner.train()
    assert [entry["step"] for entry in half[0].history.entries] == [0, 1, 2]
    assert half[0].history.entries[:2] == whole[0].history.entries[:2]
    steps = [
        each[1].probe.classifier.optimizer.state_dict()["state"][0]["step"]
        for each in (whole, half)
    ]
    assert steps == [4, 4]
    assert half[1].probe.classifier.norm.num_batches_tracked == 4
    # A fresh run on those weights starts a probe of its own.
    fresh = [HOOKS.build(hook) for hook in hooks]
    runner = build_runner(
        MAE, photo_folder, tmp_path / "fresh", **options,
        load_from=str(tmp_path / "whole/epoch_1.pth"),
    )  # fmt: skip
    for hook in fresh:
        runner.register_hook(hook)
    runner.train()
    assert fresh[1].probe.classifier.norm.num_batches_tracked == 4
    assert [entry["step"] for entry in fresh[0].history.entries] == [0, 1, 2]


# -- two processes -------------------------------------------------------------------------


def ddp_worker(rank: int, folder: str, photos: str) -> None:
    for watched in (False, True):
        runner = build_runner(
            MAE, Path(photos), Path(folder) / f"watched{watched}", images=8, batch=2,
            launcher="pytorch",
            model_wrapper_cfg={"type": "MMDistributedDataParallel", "device_ids": None},
        )  # fmt: skip
        probe = HOOKS.build(
            {"type": "OnlineProbeHook", "val_dataloader": loader(Path(photos), images=13)}
        )
        if watched:
            rank_hook = HOOKS.build({"type": "EffectiveRankHook", "num_images": 4})
            for hook in (probe, rank_hook, HOOKS.build({"type": "MaskVisualizationHook"})):
                runner.register_hook(hook)
        runner.train()
        result = {"model": weights(runner)}
        if watched:
            result |= {
                "probe": probe.probe.classifier.state_dict(),
                "linear": runner.message_hub.get_scalar("probe/linear_top1").current(),
                "knn": runner.message_hub.get_scalar("probe/knn_top1").current(),
                "measured": len(rank_hook.history.entries),
                "bank": probe._encode(runner, probe._loaders["bank"]),
                "val": probe._encode(runner, probe._loaders["val"]),
            }
        torch.save(result, f"{folder}/{watched}{rank}.pt")


def test_two_processes(photo_folder: Path, tmp_path: Path, two_processes: TwoProcesses) -> None:
    two_processes.run(ddp_worker, str(tmp_path), str(photo_folder))
    plain = torch.load(tmp_path / "False0.pt", weights_only=False)
    ranks = [torch.load(tmp_path / f"True{rank}.pt", weights_only=False) for rank in (0, 1)]
    for key, value in plain["model"].items():
        assert all(torch.equal(value, rank["model"][key]) for rank in ranks), key
    for key, value in ranks[0]["probe"].items():
        assert torch.equal(value, ranks[1]["probe"][key])
    assert [rank["measured"] for rank in ranks] == [3, 0]  # only the first computes
    # The evaluation over two shards is that of one process over the whole data sets.
    runner = build_runner(MAE, photo_folder, tmp_path / "one", images=8, batch=2)
    runner.model.load_state_dict(plain["model"])
    probe = HOOKS.build({"type": "OnlineProbeHook", "val_dataloader": loader(photo_folder)})
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    probe.before_train(runner)
    for split, number in (("val", 13), ("bank", 8)):
        features, labels = probe._encode(runner, probe._loaders[split])
        assert len(labels) == number
        for rank in ranks:
            torch.testing.assert_close(rank[split][0], features, atol=1e-5, rtol=1e-5)
            assert torch.equal(rank[split][1], labels)
    assert ranks[0]["knn"] == ranks[1]["knn"]
    assert ranks[0]["linear"] == ranks[1]["linear"]


# -- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        ("EffectiveRankHook", {"interval": 0}, "interval"),
        ("EffectiveRankHook", {"num_images": 1}, "num_images"),
        ("EffectiveRankHook", {"batch_size": 0}, "batch_size"),
        ("EffectiveRankHook", {"token": "first"}, "token"),
        ("OnlineProbeHook", {"linear": False}, "linear or knn"),
        ("OnlineProbeHook", {"knn": True}, "val_dataloader"),
        ("OnlineProbeHook", {"num_classes": 0}, "num_classes"),
        ("OnlineProbeHook", {"linear_interval": 0}, "linear_interval"),
        ("OnlineProbeHook", {"knn_k": 0}, "knn_k"),
        ("OnlineProbeHook", {"knn_t": -1.0}, "knn_t"),
        ("OnlineProbeHook", {"log_interval": 1.5}, "log_interval"),
        ("OnlineProbeHook", {"token": "patch"}, "token"),
        ("MaskVisualizationHook", {"num_images": 0}, "num_images"),
        ("MaskVisualizationHook", {"interval": -1}, "interval"),
    ],
)
def test_wrong_arguments_are_named(kind: str, arguments: dict, named: str) -> None:
    init_default_scope("mmpretrain")
    with pytest.raises((TypeError, ValueError), match=named):
        HOOKS.build({"type": kind, **arguments})


def test_wrong_models_and_labels_are_named(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no masks: MoCo"):
        run(MOCO, photo_folder, tmp_path / "moco", {"type": "MaskVisualizationHook"})
    with pytest.raises(ValueError, match="num_classes=3 is less than the 15"):
        run(MAE, photo_folder, tmp_path / "few", {"type": "OnlineProbeHook", "num_classes": 3})
    with pytest.raises(TypeError, match="'dataset' and 'batch_size'"):
        run(MAE, photo_folder, tmp_path / "loader",
            {"type": "EffectiveRankHook", "dataloader": {"dataset": {}}})  # fmt: skip
    wrapped = loader(photo_folder)
    wrapped["dataset"] = {"type": "RepeatDataset", "times": 2, "dataset": wrapped["dataset"]}
    with pytest.raises(ValueError, match="bank_dataloader must be given"):
        run(MAE, photo_folder, tmp_path / "bank",
            {"type": "OnlineProbeHook", "val_dataloader": wrapped})  # fmt: skip
    unlabelled = {"with_label": False, "data_prefix": "train/astronaut"}
    with pytest.raises(ValueError, match="num_classes must be given"):
        run(MAE, photo_folder, tmp_path / "none", {"type": "OnlineProbeHook"},
            **{f"train_dataloader.dataset.{key}": unlabelled[key] for key in unlabelled},
            **{"train_dataloader.dataset.indices": 4})  # fmt: skip
    with pytest.raises(ValueError, match="must have a gt_label"):
        run(MAE, photo_folder, tmp_path / "labels", {"type": "OnlineProbeHook", "num_classes": 2},
            **{f"train_dataloader.dataset.{key}": unlabelled[key] for key in unlabelled},
            **{"train_dataloader.dataset.indices": 4})  # fmt: skip
