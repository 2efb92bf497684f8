import json
import math
from collections import namedtuple
from pathlib import Path

import pytest

pytest.importorskip("lightly", reason="lightly is not installed")
pytest.importorskip("timm", reason="timm is not installed")

import numpy as np
import pytorch_lightning as pl
import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.utils.benchmarking import knn_predict
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mim_plugins._pixels import patchify
from mim_plugins.analysis import effective_rank
from mim_plugins.lightly import (
    EffectiveRank,
    FeatureMonitor,
    HierarchicalMaskingAnalyzer,
    MaskVisualization,
    OnlineProbe,
    mask_picture,
)
from mim_plugins.lightly.analysis.callback import extract_features

from ...figures import none_left
from ..modules import MAE

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class SimMIM(pl.LightningModule):
    """As lightly's example: all tokens through the encoder, a linear decoder."""

    def __init__(
        self, channels: int = 3, size: tuple[int, int] = (32, 32), get: object = None
    ) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=size, patch_size=4, in_chans=channels, embed_dim=32, depth=1, num_heads=2
        )
        self.get = get or (lambda batch: batch[0][0])
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = nn.Linear(32, 16 * channels)
        self.criterion = nn.L1Loss()
        self.seen: list[Tensor] = []

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        images = self.get(batch)
        _, idx_mask = utils.random_token_mask(
            size=(len(images), self.backbone.sequence_length), mask_ratio=0.6
        )
        self.seen.append(idx_mask)
        encoded = self.backbone.encode(images=images, idx_mask=idx_mask)
        predicted = self.decoder(utils.get_at_index(encoded, idx_mask))
        target = utils.get_at_index(patchify(images, 4), idx_mask - 1)
        return self.criterion(predicted, target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, eps=1e-4)  # float16's least is 6e-8


class SimSiamLike(pl.LightningModule):
    """Convolutions with batch normalisation, and dropout, two views."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 16))

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        first, second = (self.head(self.backbone(view)) for view in batch[0])
        return -nn.functional.cosine_similarity(first, second.detach()).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Views(Dataset):
    """Photographs as lightly's transforms give them: a list of random views."""

    def __init__(self, root: Path, number: int = 48) -> None:
        folder = ImageFolder(root / "train")
        step = len(folder) // number
        self.items = [folder[index * step] for index in range(number)]
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.RandomResizedCrop(32, scale=(0.5, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple:
        image, label = self.items[index]
        return [self.transform(image), self.transform(image)], label


def fixed_loader(root: Path, split: str) -> DataLoader:
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((32, 32)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(ImageFolder(root / split, transform), batch_size=20)


def fit(
    model: pl.LightningModule, photos: Path, out: Path, *callbacks: pl.Callback, **options: object
) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "default_root_dir": out,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "callbacks": list(callbacks),
            "logger": False,
            **options,
        }
    )
    loader = DataLoader(Views(photos), batch_size=16, shuffle=True, drop_last=True)
    trainer.fit(model, loader, ckpt_path=options.get("ckpt_path"))
    return trainer


def seeded(cls: type) -> pl.LightningModule:
    torch.manual_seed(0)
    return cls()


@pytest.mark.parametrize("cls", [MAE, SimMIM, SimSiamLike])
def test_training_stays_bit_for_bit(
    cls: type, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def callbacks() -> list[pl.Callback]:
        loaders = fixed_loader(photo_folder, "test"), fixed_loader(photo_folder, "train")
        return [
            EffectiveRank(num_images=24),
            OnlineProbe(num_classes=15, val_dataloader=loaders[0], knn_dataloader=loaders[1]),
            *([MaskVisualization(mean=MEAN, std=STD)] if cls is not SimSiamLike else []),
        ]

    plain, watched = seeded(cls), seeded(cls)
    fit(plain, photo_folder, tmp_path / "plain")
    trainer = fit(watched, photo_folder, tmp_path / "watched", *callbacks())
    assert plain.state_dict().keys() == watched.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    metrics = trainer.callback_metrics
    assert 1 <= metrics["analysis/effective_rank"] <= 24
    assert 0 <= metrics["probe/linear_top1"] <= 100
    assert 1 < metrics["probe/knn_top1"] <= 100
    assert metrics["train/probe_loss"] > 0

    # The comparison would notice: without the guard training takes another way.
    from contextlib import nullcontext

    from mim_plugins.analysis import monitors
    from mim_plugins.lightly.analysis import callback, online_probe

    monkeypatch.setattr(callback, "observing", lambda model: torch.no_grad())
    for module in (monitors, online_probe):
        monkeypatch.setattr(module, "preserve_rng", lambda seed=None: nullcontext())
    unguarded = seeded(cls)
    fit(unguarded, photo_folder, tmp_path / "unguarded", *callbacks())
    same = [torch.equal(plain.state_dict()[k], v) for k, v in unguarded.state_dict().items()]
    assert not all(same)


def test_effective_rank_is_that_of_the_backbone(photo_folder: Path, tmp_path: Path) -> None:
    model = seeded(SimSiamLike)
    callback = EffectiveRank(num_images=20)
    with none_left():
        fit(model, photo_folder, tmp_path, callback)
    lines = (tmp_path / "singular_spectrum.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == [0, 1, 2]
    with torch.no_grad():
        features = model.eval().backbone(callback.watch.images[:, 0]).flatten(1)
    assert entries[-1]["effective_rank"] == pytest.approx(effective_rank(features), rel=1e-6)
    assert len(entries[-1]["singular_spectrum"]) == 20
    assert sum(entries[-1]["singular_spectrum"]) == pytest.approx(1)
    assert Image.open(tmp_path / "singular_spectrum.png").size[0] > 400


def test_probe_learns_and_knn_is_lightlys(photo_folder: Path, tmp_path: Path) -> None:
    model = seeded(SimSiamLike)
    test, train = fixed_loader(photo_folder, "test"), fixed_loader(photo_folder, "train")
    probe = OnlineProbe(15, val_dataloader=test, knn_dataloader=train, every_n_epochs=2, knn_k=20)
    trainer = fit(model, photo_folder, tmp_path, probe, max_epochs=12)
    assert trainer.callback_metrics["probe/linear_top1"] > 300 / 15
    results = probe.figures(trainer, model)

    def encode(loader: DataLoader) -> tuple[Tensor, Tensor]:
        model.eval()
        with torch.no_grad():
            pairs = [(model.backbone(images).flatten(1), labels) for images, labels in loader]
        return tuple(torch.cat(each) for each in zip(*pairs, strict=True))

    features, labels = encode(test)
    bank, bank_labels = encode(train)
    predicted = knn_predict(
        nn.functional.normalize(features, dim=1),
        nn.functional.normalize(bank, dim=1).T,
        bank_labels,
        num_classes=15,
        knn_k=20,
    )[:, 0]
    expected = 100 * (predicted == labels).float().mean().item()
    assert results["knn_top1"] == pytest.approx(expected, abs=1e-4)
    logits = probe.probe.classifier.eval()(features)
    expected = 100 * (logits.argmax(1) == labels).float().mean().item()
    assert results["linear_top1"] == pytest.approx(expected, abs=1e-4)
    lines = (tmp_path / "online_probe.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8, 10, 12]


def test_resumed_callbacks_continue(photo_folder: Path, tmp_path: Path) -> None:
    def callbacks() -> tuple[pl.Callback, pl.Callback]:
        return EffectiveRank(num_images=8), OnlineProbe(15)

    first = callbacks()
    trainer = fit(seeded(MAE), photo_folder, tmp_path, *first)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    second = callbacks()
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", default_root_dir=tmp_path, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(second),
    )  # fmt: skip
    loader = DataLoader(Views(photo_folder), batch_size=16, drop_last=True)
    trainer.fit(seeded(MAE), loader, ckpt_path=tmp_path / "two.ckpt")
    assert [entry["step"] for entry in second[0].history.entries] == [0, 1, 2, 3]
    steps = second[1].probe.classifier.optimizer.state_dict()["state"][0]["step"]
    assert steps == 9  # three epochs of three steps


@pytest.mark.parametrize("cls", [MAE, SimMIM])
def test_picture_shows_the_masks_of_the_step(cls: type, photo_folder: Path, tmp_path: Path) -> None:
    model = seeded(cls)
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    fit(
        model, photo_folder, tmp_path, MaskVisualization(num_images=3, mean=MEAN, std=STD),
        logger=logger, max_epochs=1,
    )  # fmt: skip
    picture = np.asarray(Image.open(Path(logger.log_dir) / "masks_1.png")).astype(int)
    side, line = 96, 2
    assert picture.shape == (3 * side + 2 * line, 4 * side + 3 * line, 3)
    # The step's own tokens, kept or removed.
    tokens = torch.full((16, 65), cls is MAE).scatter(1, model.seen[0], cls is SimMIM)[:, 1:]
    tokens = tokens.view(16, 8, 8).numpy()
    original, masked, filled, predicted = (
        picture[:, (side + line) * column :][:, :side] for column in range(4)
    )
    for row in range(3):
        rows = slice((side + line) * row, (side + line) * row + side)
        where = tokens[row].repeat(12, 0).repeat(12, 1)
        assert (masked[rows][where] == 128).all()
        assert (masked[rows][~where] == original[rows][~where]).all()
        assert (filled[rows][~where] == original[rows][~where]).all()
        assert (filled[rows][where] == predicted[rows][where]).all()
        assert (predicted[rows][where] != original[rows][where]).any()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir).Reload()
    assert [image.step for image in events.Images("masks")] == [1]
    assert "encode" not in vars(model.backbone)


def test_features_of_precision_and_callable(photo_folder: Path) -> None:
    model = seeded(MAE).train()
    trainer = pl.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False)
    images = torch.rand(4, 3, 32, 32)
    features = extract_features(trainer, model, images)
    assert features.shape == (4, 32)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    exact = model.eval().backbone(images)
    assert 0 < (features - exact).abs().max() < 0.1
    tokens = extract_features(trainer, model, images, lambda m, x: m.backbone.encode(x)[:, 1:])
    assert tokens.shape == (4, 32)
    assert not torch.equal(tokens, features)


# -- instruments never stop a run ----------------------------------------------------------


def quick(
    model: pl.LightningModule,
    batches: object,
    out: Path,
    *callbacks: pl.Callback,
    **options: object,
) -> dict:
    """Two steps, and what was logged."""
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=out, logger=False,
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, **options,
    )  # fmt: skip
    trainer.fit(model, batches)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def every_callback(loader: DataLoader, **options: object) -> list[pl.Callback]:
    return [
        EffectiveRank(num_images=4),
        OnlineProbe(2, val_dataloader=loader, knn_dataloader=loader),
        MaskVisualization(**options),
        HierarchicalMaskingAnalyzer(**options),
    ]


def loader_of(
    channels: int = 3, size: tuple[int, int] = (16, 64), labels: Tensor | None = None
) -> DataLoader:
    labels = torch.arange(8) % 2 if labels is None else labels
    images = torch.rand(8, channels, *size, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, labels), batch_size=4)


@pytest.mark.parametrize(
    ("channels", "options"),
    [(1, {}), (3, {}), (4, {"mean": [0.5] * 4, "std": [0.2] * 4}), (12, {"mean": [9.0]})],
)
def test_any_channels_shape_and_statistics(channels: int, options: dict, tmp_path: Path) -> None:
    loader = loader_of(channels)
    model = SimMIM(channels, (16, 64), get=lambda batch: batch[0])
    figures = quick(model, loader, tmp_path, *every_callback(loader, **options))
    assert {name.split("/")[0] for name in figures} == {"analysis", "probe", "train"}
    assert all(math.isfinite(value) for value in figures.values()), figures
    assert -1 <= figures["analysis/ssim"] <= 1
    picture = Image.open(tmp_path / "masks_1.png")
    assert picture.size == (4 * 6 * 64 + 3 * 2, 4 * 6 * 16 + 3 * 2)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_true_precisions(precision: str, tmp_path: Path) -> None:
    loader = loader_of()
    model = SimMIM(3, (16, 64), get=lambda batch: batch[0])
    figures = quick(model, loader, tmp_path, *every_callback(loader), precision=precision)
    assert all(math.isfinite(value) for value in figures.values()), figures


def test_a_diverged_run_is_logged_as_nan(tmp_path: Path) -> None:
    loader = loader_of()
    model = SimMIM(3, (16, 64), get=lambda batch: batch[0] * torch.nan)
    figures = quick(model, loader, tmp_path, *every_callback(loader))
    for name in (
        "analysis/effective_rank",
        "probe/linear_top1",
        "probe/knn_top1",
        "train/probe_loss",
        "analysis/ssim",
    ):
        assert math.isnan(figures[name]), name
    entry = json.loads((tmp_path / "singular_spectrum.jsonl").read_text().splitlines()[-1])
    assert all(map(math.isnan, entry["singular_spectrum"]))


Pair = namedtuple("Pair", "image label")
ITEMS = {
    "dict": lambda image, label: {"image": image, "label": label},
    "named tuple": Pair,
    "views": lambda image, label: ([image, image[:, ::2]], label),
    "more": lambda image, label: (image, label, "name", {"latitude": 1.0}),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_batches_as_people_have_them(kind: str, tmp_path: Path) -> None:
    pairs = list(zip(*loader_of().dataset.tensors, strict=True))
    expected = quick(
        SimMIM(3, (16, 64), get=lambda b: b[0]),
        DataLoader(pairs, 4),
        tmp_path,
        EffectiveRank(),
        OnlineProbe(2),
    )
    items = DataLoader([ITEMS[kind](*pair) for pair in pairs], batch_size=4)
    get = {"dict": lambda b: b["image"], "views": lambda b: b[0][0]}.get(kind, lambda b: b[0])
    assert (
        quick(SimMIM(3, (16, 64), get=get), items, tmp_path, EffectiveRank(), OnlineProbe(2))
        == expected
    )


def test_batches_of_other_keys_and_of_images_alone(tmp_path: Path) -> None:
    images, labels = loader_of().dataset.tensors
    named = DataLoader([{"rgb": i, "class": c} for i, c in zip(images, labels, strict=True)], 4)
    where = {"images": "rgb", "labels": lambda batch: batch["class"]}
    model = SimMIM(3, (16, 64), get=lambda batch: batch["rgb"])
    figures = quick(model, named, tmp_path, EffectiveRank(images="rgb"), OnlineProbe(2, **where))
    assert set(figures) == {"analysis/effective_rank", "train/probe_loss", "train/probe_top1"}
    bare = DataLoader(list(images), batch_size=4)
    model = SimMIM(3, (16, 64), get=lambda batch: batch)
    assert set(quick(model, bare, tmp_path, EffectiveRank())) == {"analysis/effective_rank"}
    with pytest.raises(TypeError, match="a batch must hold a tensor of labels, got a tensor"):
        quick(model, bare, tmp_path, OnlineProbe(2))


def test_labels(tmp_path: Path) -> None:
    """-1 is ignored, others out of range are named, in every batch and the kNN bank."""
    model = SimMIM(3, (16, 64), get=lambda batch: batch[0])
    good = loader_of()
    some = loader_of(labels=torch.tensor([0, 1, 0, 1, -1, -1, -1, -1]))
    figures = quick(model, some, tmp_path, OnlineProbe(2, val_dataloader=some, knn_dataloader=some))
    assert all(math.isfinite(value) for value in figures.values())
    bad = loader_of(labels=torch.tensor([0, 1, 0, 1, 0, 7, 0, 1]))
    for loaders, named in (
        ((bad, good, good), r"labels must be in \[0, num_classes=2\).*\[7\]"),
        ((good, bad, good), "validation images: labels"),
        ((good, good, bad), "neighbours: labels"),
    ):
        train, val, bank = loaders
        with pytest.raises(ValueError, match=named):
            quick(model, train, tmp_path, OnlineProbe(2, val_dataloader=val, knn_dataloader=bank))
    empty = DataLoader(TensorDataset(torch.rand(0, 3, 16, 64), torch.arange(0)))
    with pytest.raises(ValueError, match="val_dataloader must have at least one image"):
        quick(model, good, tmp_path, OnlineProbe(2, val_dataloader=empty))


def test_own_monitor_and_views(tmp_path: Path) -> None:
    class Noisy(Dataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Tensor:
            return index + torch.rand(3, 16, 64)

    def images_mean(features: Tensor) -> dict[str, float]:
        return {"mean": features.mean().item(), "number": float(len(features))}

    model = SimMIM(3, (16, 64), get=lambda batch: batch[0])
    watch = FeatureMonitor(
        [images_mean, "effective_rank"],
        dataset=Noisy(),
        name="mine",
        features=lambda m, x: x.mean((2, 3)),
    )
    figures = quick(model, loader_of(), tmp_path, watch, EffectiveRank(num_images=4))
    assert figures["analysis/mean"] == pytest.approx(watch.watch.images.mean().item(), rel=1e-5)
    assert figures["analysis/number"] == 6
    lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in lines] == [0, 1]
    assert (tmp_path / "mine.png").stat().st_size > 1000


def test_one_call_draws_the_picture_of_a_module() -> None:
    model = SimMIM(3, (16, 64), get=lambda batch: batch[0]).train()
    batch = next(iter(loader_of()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    picture = mask_picture(model, batch, num_images=2)
    assert torch.equal(state, torch.get_rng_state())
    assert picture.shape == (2 * 6 * 16 + 2, 4 * 6 * 64 + 6, 3)
    assert torch.equal(mask_picture(model, batch, num_images=2), picture)  # the same masks
    assert model.training
    assert "preprocess" not in vars(model.backbone)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    # The step's own masks: those that the same random numbers give.
    torch.manual_seed(3)
    shown = mask_picture(model, batch)
    model.seen.clear()
    torch.manual_seed(3)
    model.training_step(batch, 0)
    removed = torch.zeros(4, 65, dtype=torch.bool).scatter(1, model.seen[0], True)[:, 1:]
    where = removed.view(4, 4, 16).repeat_interleave(24, 1).repeat_interleave(24, 2)
    for row in range(4):
        masked = shown[98 * row : 98 * row + 96, 386 : 386 + 384]
        assert (masked[where[row]] == 128).all()
    with pytest.raises(TypeError, match="SimSiamLike has no MaskedVisionTransformer"):
        mask_picture(SimSiamLike(), batch)


class Choosy(MAE):
    """Takes every second batch only: its step, or its hook, leaves the others out."""

    by_hook = False

    def on_train_batch_start(self, batch: list, batch_idx: int) -> int | None:
        return -1 if self.by_hook and batch_idx % 2 == 0 and self.current_epoch else None

    def training_step(self, batch: list, batch_idx: int) -> Tensor | None:
        return super().training_step(batch, batch_idx) if batch_idx % 2 else None


@pytest.mark.parametrize("by_hook", [False, True])
def test_batches_left_out_are_neither_pictured_nor_watched_on(
    by_hook: bool, photo_folder: Path, tmp_path: Path
) -> None:
    model = seeded(Choosy)
    model.by_hook = by_hook
    pictures, masks = MaskVisualization(mean=MEAN, std=STD), HierarchicalMaskingAnalyzer()
    fit(model, photo_folder, tmp_path, pictures, masks)
    names = sorted(path.name for path in tmp_path.rglob("masks_*.png"))
    assert names == (["masks_1.png"] if by_hook else ["masks_1.png", "masks_2.png"])
    assert "preprocess" not in vars(model.backbone)


@pytest.mark.slow
def test_two_processes(photo_folder: Path, tmp_path: Path) -> None:
    test, train = fixed_loader(photo_folder, "test"), fixed_loader(photo_folder, "train")
    watching = [
        EffectiveRank(num_images=8),
        OnlineProbe(15, val_dataloader=test, knn_dataloader=train),
        MaskVisualization(mean=MEAN, std=STD),
    ]
    for name, callbacks in (("plain", []), ("watched", watching)):
        saving = pl.callbacks.ModelCheckpoint(tmp_path / name, filename="last")
        fit(
            seeded(MAE), photo_folder, tmp_path / name, saving, *callbacks,
            strategy="ddp_fork_find_unused_parameters_true", devices=2,
        )  # fmt: skip
    plain = torch.load(tmp_path / "plain/last.ckpt", weights_only=False)
    watched = torch.load(tmp_path / "watched/last.ckpt", weights_only=False)
    for key, value in plain["state_dict"].items():
        assert torch.equal(value, watched["state_dict"][key]), key
    lines = (tmp_path / "watched/singular_spectrum.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]  # by the first rank only
    state = watched["callbacks"]["OnlineProbe"]
    assert state["optimizer"]["state"][0]["step"] == 2  # two epochs of one joined batch of 32


@pytest.mark.parametrize(
    ("cls", "arguments", "named"),
    [
        (EffectiveRank, {"every_n_epochs": 0}, "every_n_epochs"),
        (EffectiveRank, {"num_images": 1}, "num_images"),
        (EffectiveRank, {"batch_size": 0}, "batch_size"),
        (OnlineProbe, {"num_classes": 0}, "num_classes"),
        (OnlineProbe, {"num_classes": 2, "knn_k": 0}, "knn_k"),
        (OnlineProbe, {"num_classes": 2, "knn_t": 0.0}, "knn_t"),
        (OnlineProbe, {"num_classes": 2, "linear": False}, "linear"),
        (OnlineProbe, {"num_classes": 2, "knn_dataloader": DataLoader([])}, "val_dataloader"),
        (MaskVisualization, {"num_images": 0}, "num_images"),
        (MaskVisualization, {"every_n_epochs": 0.5}, "every_n_epochs"),
    ],
)
def test_wrong_arguments_are_named(cls: type, arguments: dict, named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        cls(**arguments)


def test_wrong_models_and_labels_are_named(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="SimSiamLike has no MaskedVisionTransformer"):
        fit(SimSiamLike(), photo_folder, tmp_path, MaskVisualization())
    with pytest.raises(ValueError, match="num_classes=3"):
        fit(seeded(MAE), photo_folder, tmp_path, OnlineProbe(3))
