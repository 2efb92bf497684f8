"""Every config of configs_mmpretrain, run: two steps and an evaluation, at reduced size.

A new file is covered by being there. The data are made, in the folders and formats that the
configs name, and go through their own pipelines; networks, images and batches are small.
"""

import argparse
import csv
import json
import pickle
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmpretrain", reason="mmpretrain is not installed")
pytest.importorskip("piq", reason="piq is not installed")

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR10, CIFAR100
from mmpretrain.datasets.utils import calculate_md5
from mmpretrain.engine.hooks import precise_bn_hook
from mmpretrain.registry import MODELS
from PIL import Image

import mim_plugins.mmpretrain  # noqa: F401
from mim_plugins.apps.variant_labels import main as write_labels

CONFIGS = Path(__file__).parents[1] / "configs_mmpretrain"
NAMES = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py") if "_base_" not in path.parts
)
BATCH, SIZE = 4, 64
DENSE = ("mask-rcnn", "faster-rcnn", "upernet")  # MMDetection's and MMSegmentation's


def write_image(path: Path, number: int, size: tuple[int, int] = (80, 72)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (9, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


def write_cifar(root: Path, kind: type[CIFAR10], labels: str) -> None:
    """CIFAR's pickles; upstream checks their sums, which ours cannot have."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, _ in (kind.train_list[0], *kind.test_list):
        data = random.integers(0, 256, (2 * BATCH, 3072), dtype=np.uint8)
        batch = {"data": data, labels: [n % 3 for n in range(2 * BATCH)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {kind.meta["key"]: [str(n) for n in range(100)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(names))


def write_voc(root: Path) -> None:
    """VOC: images, annotations with several kinds of objects, lists of images."""
    for split, images in (("trainval", 2 * BATCH), ("test", BATCH)):
        names = [f"{split}{n}" for n in range(images)]
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
        (root / "Annotations").mkdir(exist_ok=True)
        for n, name in enumerate(names):
            write_image(root / f"JPEGImages/{name}.jpg", n)
            kinds = {"cat": 0, "dog" if n % 2 else "person": 0, "car": int(n > 0)}
            objects = "".join(
                f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox>"
                "<xmin>5</xmin><ymin>8</ymin><xmax>60</xmax><ymax>64</ymax></bndbox></object>"
                for kind, difficult in kinds.items()
            )
            size = "<size><width>80</width><height>72</height><depth>3</depth></size>"
            (root / f"Annotations/{name}.xml").write_text(
                f"<annotation>{size}{objects}</annotation>"
            )


def write_coco(root: Path) -> None:
    """COCO 2017: images, boxes and polygons of two of its 80 categories."""
    (root / "annotations").mkdir(parents=True)
    for split, images in (("train2017", BATCH), ("val2017", BATCH)):
        listed, objects = [], []
        for n in range(images):
            write_image(root / split / f"{n}.jpg", n)
            listed.append({"id": n, "file_name": f"{n}.jpg", "width": 80, "height": 72})
            for category, (x, y, w, h) in ((1, (2, 3, 40, 50)), (18, (30, 20, 45, 40))):
                objects.append(
                    {
                        "id": len(objects) + 1, "image_id": n, "category_id": category,
                        "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )  # fmt: skip
        categories = [{"id": n + 1, "name": name} for n, name in enumerate(_coco_names())]
        content = {"images": listed, "annotations": objects, "categories": categories}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def _coco_names() -> list[str]:
    from mmdet.datasets import CocoDataset

    return list(CocoDataset.METAINFO["classes"])


def write_ade(root: Path) -> None:
    """ADE20K: images, and maps in which 0 is no class and n the class n - 1 of 150."""
    for split in ("training", "validation"):
        for n in range(BATCH):
            write_image(root / "images" / split / f"{n}.jpg", n)
            labels = np.random.default_rng(n).integers(0, 4, (9, 10), dtype=np.uint8)
            path = root / "annotations" / split / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).resize((80, 72), Image.Resampling.NEAREST).save(path)


def write_objectnet(root: Path) -> None:
    for kind in ("banana", "bicycle", "paper"):
        write_image(root / "images" / kind / "a.png", 1)
    (root / "mappings").mkdir()
    labels = {"banana": "Banana", "bicycle": "Bicycle", "paper": "Paper"}
    (root / "mappings/folder_to_objectnet_label.json").write_text(json.dumps(labels))
    two = (
        "mountain bike, all-terrain bike, off-roader; bicycle-built-for-two, tandem bicycle, tandem"
    )
    (root / "mappings/objectnet_to_imagenet_1k.json").write_text(
        json.dumps({"Banana": "banana", "Bicycle": two})
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``data/``, as README.md of each paper lays it out, to run in."""
    root = tmp_path_factory.mktemp("run")
    folder = root / "data"
    wordnet = [f"n{number:08d}" for number in range(1000)]
    for split in ("train", "val"):
        for name in wordnet:
            (folder / "imagenet" / split / name).mkdir(parents=True)
    shots = {"train": 2 * BATCH, "val": BATCH}
    for split, images in shots.items():
        for n in range(images):
            for where, names in (
                ("imagenet", wordnet),
                ("imagenet100", wordnet),
                ("tiny-imagenet-200", wordnet),
            ):
                side = (64, 64) if where.startswith("tiny") else (80, 72)
                write_image(folder / where / split / names[n % 3] / f"{n}.JPEG", n, side)
    for where in ("cifar10", "cifar", "photos"):
        side = (32, 32) if "cifar" in where else (80, 72)
        for split, images in (("train", 2 * BATCH), ("test", BATCH)):
            for n in range(images):
                write_image(folder / where / split / str(n % 3) / f"{n}.png", n, side)
    listed = sorted((folder / "imagenet/train").glob("*/*.JPEG"))
    lines = "".join(f"{image.parent.name}/{image.name} {n % 3}\n" for n, image in enumerate(listed))
    (folder / "imagenet/meta").mkdir()
    for share in (1, 10):
        (folder / f"imagenet/meta/train_{share}percent.txt").write_text(lines)
    for number in (7, 3, 512):
        for name in ("imagenet-r", "imagenet-a", "imagenet-sketch"):
            write_image(folder / name / wordnet[number] / "a.jpg", number)
        write_image(folder / "imagenet-v2" / str(number) / "a.jpg", number)
    for name in ("imagenet-r", "imagenet-a", "imagenet-sketch", "imagenet-v2"):
        write_labels([str(folder / "imagenet/train"), str(folder / name)])
    for number in range(9):
        (folder / f"in9l/train/{number:02d}_kind").mkdir(parents=True)
        if number < 2 * BATCH:
            write_image(folder / f"in9l/train/{number:02d}_kind/a.JPEG", number)
        write_image(folder / f"in9l/val/{number:02d}_kind/a.JPEG", number)
        for variant in ("original", "mixed_same", "mixed_rand"):
            write_image(folder / f"bg_challenge/{variant}/val/{number:02d}_kind/a.JPEG", number)
    write_voc(folder / "VOC2007")
    write_objectnet(folder / "objectnet")
    write_labels([str(folder / "imagenet/train"), str(folder / "objectnet")])
    for category in ("cat", "dog"):
        write_image(folder / "cue-conflict" / category / f"{category}1-dog2.png", 1)
    with pytest.MonkeyPatch.context() as patch:
        for kind, labels in ((CIFAR10, "labels"), (CIFAR100, "fine_labels")):
            where = folder / ("cifar10" if kind is CIFAR10 else "cifar100")
            write_cifar(where, kind, labels)
            for part in ("train_list", "test_list"):
                sums = [
                    [name, calculate_md5(str(where / kind.base_folder / name))]
                    for name, _ in getattr(kind, part)[:1]
                ]
                patch.setattr(kind, part, sums)
            meta = where / kind.base_folder / kind.meta["filename"]
            patch.setattr(kind, "meta", {**kind.meta, "md5": calculate_md5(str(meta))})
        patch.chdir(root)
        yield root


SIZES = {224: SIZE, 192: SIZE, 256: SIZE + 8}
VIT = {"embed_dims": 16, "num_layers": 2, "num_heads": 2, "feedforward_channels": 32}


def dicts_in(node: object, leave: Callable[[dict], bool] = lambda each: False) -> Iterator[dict]:
    """All dictionaries of a config, outer ones first; nothing within those to ``leave``."""
    if isinstance(node, list):
        for each in node:
            yield from dicts_in(each, leave)
    elif isinstance(node, dict):
        yield node
        if not leave(node):
            for each in node.values():
                yield from dicts_in(each, leave)


def shrink_pipeline(node: object) -> None:
    """Images of 64 pixels instead of 192 or 224."""
    for each in dicts_in(node):
        for key, value in each.items():
            if key in ("scale", "crop_size", "input_size") and value in SIZES:
                each[key] = SIZES[value]


def is_loader(node: dict) -> bool:
    return "dataset" in node and "batch_size" in node


def shrink_loaders(node: object) -> None:
    """Small batches, no worker processes, wherever a data loader is, in hooks too."""
    for each in filter(is_loader, dicts_in(node, leave=is_loader)):
        each.update(batch_size=BATCH, num_workers=0, persistent_workers=False)
        each["dataset"]["serialize_data"] = False  # which collects garbage
        shrink_pipeline(each["dataset"])


def shrink_model(model: dict) -> None:
    """The same parts, narrower and shallower."""
    backbone = model["backbone"]
    kind = backbone["type"].rsplit(".", 1)[-1]
    if "ResNet" in kind:
        backbone.update(stem_channels=8, base_channels=8)
        if "num_splits" in backbone.get("norm_cfg", {}):
            backbone["norm_cfg"]["num_splits"] = 2

        def width(before: int) -> int:
            return before // 8

    else:
        if backbone.get("img_size", 224) in SIZES:
            backbone["img_size"] = SIZE
        if "Swin" in kind:
            backbone["arch"] = {"embed_dims": 16, "depths": [1] * 4, "num_heads": [1] * 4}
            backbone["stage_cfgs"] = {"block_cfgs": {"window_size": 2}}
        else:
            backbone["arch"] = VIT
            if backbone.get("frozen_stages", -1) > 0:
                backbone["frozen_stages"] = 2

        def width(before: int) -> int:
            return 128 if "Swin" in kind else 16

    init = backbone.get("init_cfg")
    if isinstance(init, dict) and "checkpoint" in init:
        assert init["type"] == "Pretrained"
        assert init["prefix"] == "backbone."
        backbone["init_cfg"] = None
    if "queue_len" in model:
        model["queue_len"] = 64
    for part in (model.get("neck"), model.get("head")):
        if not part:
            continue
        if part["type"] == "MAEPretrainDecoder":
            part.update(
                num_patches=(backbone["img_size"] // part["patch_size"]) ** 2,
                embed_dim=16, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
            )  # fmt: skip
        for key in ("input_features", "in_channels"):
            if key in part:
                part[key] = width(part[key])
        if "hid_channels" in part:
            part["hid_channels"] = 16


def shrink(cfg: Config, work_dir: Path, name: str) -> None:
    shrink_model(cfg.model)
    shrink_loaders(cfg._cfg_dict)
    cfg.train_cfg.max_epochs = 1
    if cfg.get("val_dataloader"):
        cfg.train_cfg.val_interval = 1
    for hook in cfg.get("custom_hooks", []):
        if "interval" in hook:
            hook.interval = 1
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": -1, "save_last": False}
    cfg.default_hooks.logger = {"type": "LoggerHook", "interval": 1}
    cfg.work_dir, cfg.experiment_name = str(work_dir), name


def evaluate(runner: Runner, cfg: Config) -> None:
    """By the config's own test or validation; what it has learnt to encode where it has none."""
    if cfg.get("test_dataloader"):
        metrics = runner.test()
        assert metrics
        assert np.isfinite(list(metrics.values())).all(), metrics
        return
    model = runner.model.eval()
    batch = next(iter(runner.train_dataloader))
    images = model.data_preprocessor(batch)["inputs"]
    images = images[0] if isinstance(images, list) else images
    with torch.no_grad():
        features = model.extract_feat(images)
    tensors = [each for each in _flat(features) if torch.is_floating_point(each)]
    assert tensors
    assert all(each.isfinite().all() for each in tensors)
    assert any(each.std() > 0 for each in tensors)


def _flat(node: object) -> Iterator[torch.Tensor]:
    if torch.is_tensor(node):
        yield node
    elif isinstance(node, (list, tuple)):
        for each in node:
            yield from _flat(each)


def rigged(cfg: Config, category: int) -> Runner:
    """A probe that answers the same to every image."""
    runner = Runner.from_cfg(cfg)
    with torch.no_grad():
        head = runner.model.head
        linear = head.fc if hasattr(head, "fc") else head.layers.head
        linear.weight.zero_()
        linear.bias.zero_()[category] = 5.0
    return runner


@pytest.mark.parametrize("name", ["r", "a", "sketch", "v2", "objectnet"])
def test_variants_are_scored(name: str, data: Path, tmp_path: Path) -> None:
    """In each one's own layout: the share of images whose class is the one answered."""
    cfg = Config.fromfile(CONFIGS / "hierarchical/benchmarks/vit-base-p16_linear_variants.py")
    shrink(cfg, tmp_path, name)
    root = name if name == "objectnet" else f"imagenet-{name}"
    cfg.test_dataloader.dataset.data_root = f"data/{root}/"
    # Images of classes 3, 7 and 512. ObjectNet: a banana, 954 of ImageNet; a bicycle, which is
    # two of its classes, and paper, none, are left out.
    share = {7: 100 / 3, 954: 0.0} if name != "objectnet" else {7: 0.0, 954: 100.0}
    for category, expected in share.items():
        cfg.experiment_name = f"{name}{category}"
        metrics = rigged(cfg, category).test()
        assert metrics["accuracy/top1"] == pytest.approx(expected, abs=1e-3)


def test_background_challenge_is_scored(data: Path, tmp_path: Path) -> None:
    """Each variant of README.md by its own images, of which one gets two more of class 0."""
    name = "dppmask/benchmarks/vit-base-p16_8xb128-coslr-100e_in9l.py"
    for more in range(2):
        write_image(data / f"data/bg_challenge/mixed_rand/val/00_kind/more{more}.JPEG", more)
    for variant, share in (("original", 1 / 9), ("mixed_same", 1 / 9), ("mixed_rand", 3 / 11)):
        cfg = Config.fromfile(CONFIGS / name)
        shrink(cfg, tmp_path, f"{name}-{variant}")
        cfg.test_dataloader.dataset.data_root = f"data/bg_challenge/{variant}/"
        metrics = rigged(cfg, 0).test()
        assert metrics["accuracy/top1"] == pytest.approx(100 * share, abs=1e-3)


def test_shape_bias_is_scored(data: Path, tmp_path: Path) -> None:
    """A probe that sees cats: the shape in a cat of a dog's fur. What upstream's script reads."""
    name = "hierarchical/benchmarks/vit-base-p16_linear_shape-bias.py"
    cfg = Config.fromfile(CONFIGS / name)
    shrink(cfg, tmp_path, name)
    cfg.test_evaluator.csv_dir = str(tmp_path / "csv")
    assert rigged(cfg, 281).test() == {"accuracy/top1": 0.5}  # a tabby cat; a cat, a dog
    (file,) = (tmp_path / "csv").glob("*.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    answers = {row["imagename"]: (row["category"], row["object_response"]) for row in rows}
    assert answers == {"cat1-dog2.png": ("cat", "cat"), "dog1-dog2.png": ("dog", "cat")}


def test_distances_between_masked_images_as_the_readme_has_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures 2(b) and 2(c) of U-MAE, with the lines of README.md."""
    text = (CONFIGS / "umae/README.md").read_text()
    (block,) = [
        code
        for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.M)
        if "class_distances(" in code
    ]
    for number in range(11):  # the eleventh class is not taken
        write_image(tmp_path / f"data/imagenet100/val/n{number:02d}/a.JPEG", number, (230, 240))
    write_image(tmp_path / "data/imagenet100/val/n00/b.JPEG", 0, (230, 240))  # as a.JPEG
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "distances.png").stat().st_size > 1000
    assert len(names["paths"]) == 11
    found = names["distances"]
    # The same image twice is the one pair within a class: under no mask there is one distance,
    # the largest between two of its patches.
    image = names["load_images"](names["paths"][:1], 224).double() / 255
    patches = image.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(196, -1)
    largest = torch.cdist(patches, patches, compute_mode="donot_use_mm_for_euclid_dist").max()
    intra = torch.as_tensor(found.intra)
    assert intra.shape == (5,)
    assert (intra <= largest + 1e-6).all()
    assert intra[0] > 0.9 * largest
    assert intra[-1] < intra[0]  # fewer pairs, a smaller largest one


@pytest.fixture(scope="module")
def dense_data(data: Path) -> Path:
    folder = data / "data"
    write_coco(folder / "coco")
    write_ade(folder / "ade/ADEChallengeData2016")
    for year in (2007, 2012):
        write_voc(folder / f"VOCdevkit/VOC{year}")
    return data


def shrink_pixels(node: object) -> None:
    """An eighth of every side that a pipeline, preprocessor or tester names."""
    for each in dicts_in(node):
        for key, value in each.items():
            if key in ("scale", "crop_size", "size", "stride") and isinstance(value, (tuple, list)):
                each[key] = tuple(side // 8 for side in value)
            elif key == "scales" and isinstance(value[0], (tuple, list)):  # not of anchors
                each[key] = [tuple(side // 8 for side in pair) for pair in value]


def shrink_dense(cfg: Config, work_dir: Path, name: str) -> None:
    """The same parts: a narrow ViT of all its layers, or the ResNet-50; few proposals."""
    model = cfg.model
    backbone = model.backbone
    assert backbone.init_cfg.type == "Pretrained"
    assert backbone.init_cfg.prefix == "backbone."
    backbone.init_cfg = None
    if "VisionTransformer" in backbone.type:
        backbone.arch = {**VIT, "num_layers": 12}
        for part in (model.neck, model.get("decode_head"), model.get("auxiliary_head")):
            for each in part if isinstance(part, list) else [part]:
                for key in ("embed_dim", "embed_dims", "in_channels"):
                    if each and key in each:
                        old = each[key]
                        each[key] = [VIT["embed_dims"]] * 4 if isinstance(old, list) else 16
    if "roi_head" in model:
        if "shared_head" in model.roi_head:
            model.roi_head.shared_head.init_cfg = None
        model.train_cfg.rcnn.sampler.num = 8
        for proposals in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
            proposals.nms_pre, proposals.max_per_img = 50, 8
        model.test_cfg.rcnn.score_thr = 0.0  # an untrained model is sure of nothing
    for part in (model, cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        shrink_pixels(part)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        if "times" in loader.dataset:
            loader.dataset.times = 1
    if "max_iters" in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    for hook in cfg.get("custom_hooks", []):
        assert hook.type == "mmpretrain.PreciseBNHook"
        hook.update(num_samples=4, interval=2)
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook", "interval": -1, "save_last": False}
    cfg.default_hooks.logger = {"type": "LoggerHook", "interval": 1}
    cfg.work_dir, cfg.experiment_name = str(work_dir), name


@pytest.mark.parametrize("name", [name for name in NAMES if Path(name).name.startswith(DENSE)])
def test_dense_runs(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Detection and segmentation, in the environment that scripts/detection_env.sh makes."""
    pytest.importorskip("mmcv._ext", reason="mmcv has no compiled operators")
    pytest.importorskip("mmdet", reason="MMDetection is not installed")
    pytest.importorskip("mmseg", reason="MMSegmentation is not installed")
    request.getfixturevalue("dense_data")
    precise, update = [], precise_bn_hook.update_bn_stats

    def update_bn_stats(*args: Any, **options: Any) -> None:
        precise.append(args)
        update(*args, **options)

    monkeypatch.setattr(precise_bn_hook, "update_bn_stats", update_bn_stats)
    cfg = Config.fromfile(CONFIGS / name)
    length = re.search(r"-(\d+)(k|e|x)_", name)
    assert length
    unit = {"k": ("max_iters", 1000), "e": ("max_epochs", 1), "x": ("max_epochs", 12)}[length[2]]
    assert cfg.train_cfg[unit[0]] == int(length[1]) * unit[1]
    assert cfg.param_scheduler[-1].end == cfg.train_cfg[unit[0]]
    for hook in cfg.get("custom_hooks", []):  # 200 batches of 16 before each evaluation
        assert (hook.num_samples, hook.interval) == (3200, cfg.train_cfg.val_interval)
    shrink_dense(cfg, tmp_path, name)
    runner = Runner.from_cfg(cfg)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    assert runner.iter == 2
    assert np.isfinite(runner.message_hub.get_scalar("train/loss").current())
    after = runner.model.state_dict()
    assert len(precise) == len(cfg.get("custom_hooks", []))  # after the second step
    still = [key for key, value in before.items() if torch.equal(after[key], value)]
    for part in ("backbone", "neck", "rpn_head", "roi_head", "decode_head"):
        keys = [key for key in before if key.startswith(f"{part}.")]
        assert not keys or set(keys) - set(still), part
    metrics = runner.test()
    assert np.isfinite(list(metrics.values())).all(), metrics
    scores = [key for key in metrics if re.search("bbox_mAP$|segm_mAP$|mIoU$|pascal_voc/mAP$", key)]
    assert len(scores) == (2 if "mask-rcnn" in name else 1), metrics
    init_default_scope("mmpretrain")


@pytest.mark.parametrize("name", [name for name in NAMES if not Path(name).name.startswith(DENSE)])
def test_runs(name: str, data: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / name)
    shrink(cfg, tmp_path, name)
    runner = Runner.from_cfg(cfg)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    assert runner.iter == 2
    assert np.isfinite(runner.message_hub.get_scalar("train/loss").current())
    after = runner.model.state_dict()
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    evaluate(runner, cfg)


CLASSES = {"in1k": 1000, "in100": 100, "in9l": 9, "cifar10": 10, "cifar100": 100, "voc07": 20}
CLASSES["tiny-imagenet"] = 200
NAMED = [n for n in NAMES if "xb" in n and not Path(n).name.startswith(DENSE) and "demo" not in n]


@pytest.mark.parametrize("name", NAMED)
def test_says_what_its_name_says(name: str) -> None:
    """Epochs, GPUs and images per GPU; the batch that the learning rate is for; the data."""
    cfg = Config.fromfile(CONFIGS / name)
    stem = Path(name).stem
    epochs = int(re.search(r"-(\d+)e_", stem)[1])
    gpus, batch = (int(n) for n in re.search(r"(\d+)xb(\d+)", stem).groups())
    assert cfg.train_cfg.max_epochs == epochs
    last = cfg.param_scheduler[-1]
    assert last.get("end", epochs) == epochs
    if "milestones" in last:
        assert max(last.milestones) < epochs
    assert cfg.train_dataloader.batch_size == batch
    total = gpus * batch * cfg.optim_wrapper.get("accumulative_counts", 1)
    if "auto_scale_lr" in cfg:
        assert cfg.auto_scale_lr.base_batch_size == total
    data = re.split(r"[-_](?=32px|192px)", stem)[0].rsplit("_", 1)[1]
    if "head" in cfg.model and "num_classes" in cfg.model.head and "mini" not in stem:
        assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == CLASSES[data]
    where = cfg.train_dataloader.dataset.data_root
    folders = {"in1k": "data/imagenet", "in100": "data/imagenet100"}
    assert where.rstrip("/") == folders.get(data, where.rstrip("/"))


def _built(name: str) -> tuple[Config, torch.optim.Optimizer, dict[int, str]]:
    """A config's optimiser, over a small model of the same parts, and the parameters' names."""
    cfg = Config.fromfile(CONFIGS / name)
    shrink_model(cfg.model)
    init_default_scope("mmpretrain")
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    return cfg, wrapper, {id(value): key for key, value in model.named_parameters()}


# Base learning rate and the images that it is for; weight decay.
RATES = {
    "umae/umae_*.py": (1.5e-4, 256, 0.05),
    "umae/usimmim_vit*.py": (1e-4, 512, 0.05),
    "umae/usimmim_swin*.py": (2e-4, 512, 0.05),
    "umae/benchmarks/*-linear-*.py": (0.1, 256, 0.0),
    "mi_mae/mi-mae_*.py": (1.5e-4, 256, 0.05),
    "mi_mae/mi-simmim_*.py": (2e-4, 512, 0.05),
    "dppmask/mae-dpp_*amp*.py": (1.5e-4, 256, 0.05),
    "dppmask/benchmarks/*multilabel*.py": (5e-4, 256, 0.05),
    "hierarchical/mae*.py": (1.5e-4, 256, 0.05),
}
RATED = [(str(p.relative_to(CONFIGS)), r) for g, r in RATES.items() for p in CONFIGS.glob(g)]


@pytest.mark.parametrize(("name", "rates"), RATED, ids=[name for name, _ in RATED])
def test_learning_rate_is_for_the_batch_and_only_matrices_decay(
    name: str, rates: tuple[float, int, float]
) -> None:
    """Of the optimiser that is built: one-dimensional parameters, tokens and positions do not."""
    cfg, wrapper, names = _built(name)
    rate, images, decay = rates
    expected = rate * cfg.auto_scale_lr.base_batch_size / images
    groups = wrapper.optimizer.param_groups
    assert max(group["lr"] for group in groups) == pytest.approx(expected)
    decaying = {
        names[id(value)]: value
        for group in groups
        for value in group["params"]
        if group["weight_decay"]
    }
    assert bool(decaying) == bool(decay)
    assert {g["weight_decay"] for g in groups} <= {0.0, decay}
    for key, value in decaying.items():
        assert value.ndim > 1, key
        if "swin" not in name:  # stock's mask token decays there, as SimMIM's
            assert not re.search(r"token|pos_embed|position_bias_table", key), key


@pytest.mark.parametrize("data", ["cifar100", "tiny-imagenet"])
def test_mixmask_recipes(data: str) -> None:
    """What the recipes that table 8 comes from have: schedules, views, neighbours, MoCo's loss."""
    folder, mixed = CONFIGS / "mixmask", "mixmask_resnet18_1xb512"
    rates = {"byol": (3e-3, 2e-3), "simclr": (3e-3, 2e-3), "moco": (0.06,) * 2}
    rates["simsiam"] = (0.03,) * 2
    for algorithm, rate in rates.items():
        step = algorithm in ("byol", "simclr")
        kind = "steplr" if step else "coslr"
        cfg = Config.fromfile(folder / f"{algorithm}-{mixed}-{kind}-1000e_{data}.py")
        assert cfg.optim_wrapper.optimizer.lr == rate[data == "tiny-imagenet"]
        init_default_scope("mmpretrain")
        model = MODELS.build(cfg.model)
        assert [type(mixer).__name__ for mixer in model.mixers] == ["MixMask"]
        views = cfg.train_dataloader.dataset.pipeline[-2].transforms[0]
        types = [view["type"] for view in views]
        crop = views[types.index("RandomResizedCrop")]
        gray = views[types.index("RandomGrayscale")]
        knn = cfg.custom_hooks[-1]
        assert cfg.randomness.diff_rank_seed
        if algorithm == "moco":
            assert (crop.crop_ratio_range, gray.prob) == ((0.08, 1.0), 0.2)
            assert model.query_views == slice(2)  # symmetric
            norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            assert norms
            assert {norm.num_splits for norm in norms} == {8}
            assert knn.get("knn_k", 200) == 200
            assert knn.projection
        else:
            assert (crop.crop_ratio_range, gray.prob) == ((0.2, 1.0), 0.1)
            assert crop.interpolation == "bicubic"
            assert knn.knn_k == 5
            assert not knn.knn_normalize
            assert not knn.projection
        assert cfg.param_scheduler[-1].end == 1000
        if not step:
            continue
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedulers = [
            PARAM_SCHEDULERS.build({**each, "optimizer": optimizer}) for each in cfg.param_scheduler
        ]
        seen = []
        for _ in range(501):
            seen.append(optimizer.param_groups[0]["lr"])
            schedulers[0].step()
        assert seen == pytest.approx([min((n + 1) / 500, 1) for n in range(501)])
        seen = []
        for _ in range(1000):
            seen.append(optimizer.param_groups[0]["lr"])
            schedulers[1].step()
        for epoch, expected in ((0, 1), (949, 1), (950, 0.2), (974, 0.2), (975, 0.04)):
            assert seen[epoch] == pytest.approx(expected), epoch
    probe = Config.fromfile(folder / f"benchmarks/resnet18_1xb1000-linear-explr-500e_{data}.py")
    assert probe.optim_wrapper.optimizer.lr * probe.param_scheduler[
        0
    ].gamma ** 500 == pytest.approx(1e-6)
    steps = {step.type for step in probe.train_dataloader.dataset.pipeline}
    assert steps <= {"LoadImageFromFile", "PackInputs"}


def test_pretraining_batches_are_the_papers() -> None:
    """Images per optimiser step and epochs of warm-up, as the papers and their code have them."""
    for pattern, images, warm_up in (
        ("umae/umae_*in1k.py", 1024, 40),
        ("umae/umae_*in100.py", 1024, 40),
        ("umae/umae_*cifar10*.py", 4096, 40),
        ("umae/usimmim_vit*.py", 128, 10),
        ("umae/benchmarks/*linear*.py", 8192, 10),
        ("mi_mae/mi-mae_*.py", 4096, 40),
        ("dppmask/mae-dpp_*.py", 4096, 40),
    ):
        paths = list(CONFIGS.glob(pattern))
        assert paths, pattern
        for path in paths:
            cfg = Config.fromfile(path)
            gpus = int(re.search(r"(\d+)xb", path.name)[1])
            counts = cfg.optim_wrapper.get("accumulative_counts", 1)
            assert gpus * cfg.train_dataloader.batch_size * counts == images, path.name
            assert cfg.param_scheduler[0].type == "LinearLR"
            assert cfg.param_scheduler[0].end == warm_up, path.name


def test_usimmim_is_simmims_own_setting() -> None:
    """Of its ViT-B: schedule (800 epochs with a drop at 700, in 200), masks, network."""
    (path,) = (CONFIGS / "umae").glob("usimmim_vit*.py")
    cfg = Config.fromfile(path)
    warm, steps = cfg.param_scheduler
    assert warm.start_factor * 1e-4 == pytest.approx(5e-7)
    assert (steps.milestones, steps.gamma, steps.end) == ([175], 0.1, 200)
    (masks,) = (s for s in cfg.train_dataloader.dataset.pipeline if "Mask" in s.type)
    assert (masks.mask_patch_size, masks.model_patch_size, masks.mask_ratio) == (32, 16, 0.6)
    cfg.model.backbone.arch = VIT
    cfg.model.neck.in_channels = VIT["embed_dims"]
    init_default_scope("mmpretrain")
    backbone = MODELS.build(cfg.model).backbone
    names = {key for key, _ in backbone.named_parameters()}
    assert [key for key in names if "relative_position_bias_table" in key] == [
        "rel_pos_bias.relative_position_bias_table"  # one for all layers
    ]
    assert not [key for key in names if "pos_embed" in key]
    assert cfg.model.backbone.drop_path_rate == 0.1


def test_lambda_of_umae_is_the_published_one() -> None:
    """And acts as in the authors' code: divided by the number of GPUs that the name says."""
    for pattern, weight, gpus, acts in (
        ("umae_*in1k.py", 1e-2, 8, 1.25e-3),
        ("umae_*in100.py", 1e-4, 4, 2.5e-5),
        ("umae_*cifar10*.py", 1e-2, 1, 1e-2),
        ("usimmim_vit*.py", 1e-4, 4, 2.5e-5),
    ):
        paths = list((CONFIGS / "umae").glob(pattern))
        assert paths, pattern
        for path in paths:
            model = Config.fromfile(path).model
            assert model.uniformity_weight == weight
            assert model.official_gather
            assert f"_{gpus}xb" in path.name
            assert weight / gpus == pytest.approx(acts)


OPTIONS = [
    (path.parent.name, name, options)
    for path in sorted(CONFIGS.glob("*/README.md"))
    for name, options in re.findall(r"\| `([^`|]+\.py)` \| `([^`]+=[^`]+)` \|", path.read_text())
]
# What a config may not have yet.
NEW = {"base", "unmix", "shared", "cross_weight", "input_weight", "output_weight"}
NEW |= {"exact", "permutation", "type"}


@pytest.mark.parametrize(("folder", "name", "options"), OPTIONS)
def test_settings_of_the_tables_are_built(folder: str, name: str, options: str) -> None:
    """README.md's ``--cfg-options``, taken as ``tools/train.py`` takes them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    changes = parser.parse_args(["--cfg-options", *shlex.split(options)]).cfg_options
    cfg = Config.fromfile(CONFIGS / folder / name)
    for key in changes:
        node = cfg._cfg_dict
        for part in key.split("."):
            if part in NEW:
                break
            node = node[int(part)] if part.isdigit() else node
            if not part.isdigit():
                assert part in node, key
                node = node[part]
    before = cfg.copy()
    cfg.merge_from_dict(changes)
    assert cfg._cfg_dict != before._cfg_dict
    schedule = cfg.param_scheduler[-1]
    if "train_cfg.max_epochs" in changes:
        assert schedule.end == cfg.train_cfg.max_epochs
        assert schedule.end == schedule.get("T_max", schedule.end) + schedule.get("begin", 0)
    shrink_model(cfg.model)
    init_default_scope("mmpretrain")
    MODELS.build(cfg.model)
