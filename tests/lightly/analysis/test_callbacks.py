import json
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
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from mim_plugins.analysis import effective_rank
from mim_plugins.lightly import EffectiveRank, MaskVisualization, OnlineProbe
from mim_plugins.lightly.analysis.callbacks import extract_features

from ...figures import none_left
from ..modules import MAE

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class SimMIM(pl.LightningModule):
    """As lightly's example: all tokens through the encoder, a linear decoder."""

    def __init__(self) -> None:
        super().__init__()
        vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=1, num_heads=2)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = nn.Linear(32, 48)
        self.criterion = nn.L1Loss()
        self.seen: list[Tensor] = []

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor:
        images = batch[0][0]
        _, idx_mask = utils.random_token_mask(
            size=(len(images), self.backbone.sequence_length), mask_ratio=0.6
        )
        self.seen.append(idx_mask)
        encoded = self.backbone.encode(images=images, idx_mask=idx_mask)
        predicted = self.decoder(utils.get_at_index(encoded, idx_mask))
        target = utils.get_at_index(utils.patchify(images, 4), idx_mask - 1)
        return self.criterion(predicted, target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class SimSiamLike(pl.LightningModule):
    """A ResNet with batch normalisation and dropout, two views."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(resnet18().children())[:-1])
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 16))

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
    assert 1 <= metrics["effective_rank"] <= 24
    assert 0 <= metrics["val_online_cls_top1"] <= 1
    assert 0 < metrics["val_knn_top1"] <= 1
    assert metrics["train_online_cls_loss"] > 0

    # The comparison would notice: without the guard training takes another way.
    from contextlib import nullcontext

    import mim_plugins.lightly.analysis.callbacks as module

    monkeypatch.setattr(module, "observing", lambda model: torch.no_grad())
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
        features = model.eval().backbone(callback.images).flatten(1)
    assert entries[-1]["effective_rank"] == pytest.approx(effective_rank(features), rel=1e-6)
    assert len(entries[-1]["singular_spectrum"]) == 20
    assert sum(entries[-1]["singular_spectrum"]) == pytest.approx(1)
    assert Image.open(tmp_path / "singular_spectrum.png").size[0] > 400


def test_probe_learns_and_knn_is_lightlys(photo_folder: Path, tmp_path: Path) -> None:
    model = seeded(SimSiamLike)
    test, train = fixed_loader(photo_folder, "test"), fixed_loader(photo_folder, "train")
    probe = OnlineProbe(15, val_dataloader=test, knn_dataloader=train, every_n_epochs=2, knn_k=20)
    trainer = fit(model, photo_folder, tmp_path, probe, max_epochs=12)
    assert trainer.callback_metrics["val_online_cls_top1"] > 3 / 15
    results = probe.evaluate(trainer, model)

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
    expected = (predicted == labels).float().mean().item()
    assert results["val_knn_top1"] == pytest.approx(expected, abs=1e-6)
    logits = probe.classifier(features)
    expected = (logits.argmax(1) == labels).float().mean().item()
    assert results["val_online_cls_top1"] == pytest.approx(expected, abs=1e-6)


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
    assert [entry["step"] for entry in second[0].history] == [0, 1, 2, 3]
    steps = second[1].optimizer.state_dict()["state"][0]["step"]
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
            strategy="ddp_spawn_find_unused_parameters_true", devices=2,
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
    with pytest.raises(TypeError, match="SimSiamLike has none"):
        fit(SimSiamLike(), photo_folder, tmp_path, MaskVisualization())
    with pytest.raises(ValueError, match="num_classes=3"):
        fit(seeded(MAE), photo_folder, tmp_path, OnlineProbe(3))
